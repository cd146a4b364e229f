// Controls that the front end of ClickToSegment is built of.

const ICONS = { // paths in a square of 24
  undo: "M9 5 4 10l5 5M4 10h10a6 6 0 0 1 0 12h-3", redo: "M15 5l5 5-5 5M20 10H10a6 6 0 0 0 0 12h3", plus: "M12 5v14M5 12h14",
  minus: "M5 12h14", whole: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5", screen: "M13 11l7-7M15 4h5v5M11 13l-7 7M4 15v5h5",
  edit: "M4 20l1-5L16 4l4 4L9 19z", cross: "M6 6l12 12M18 6 6 18",
};

export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (key in node && !key.startsWith("aria")) node[key] = value; else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", "aria-hidden": "true" })) svg.setAttribute(key, value);
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  svg.firstChild.setAttribute("d", ICONS[name]);
  return svg;
}

export const button = (words, title, onclick, props = {}) =>
  h("button", { type: "button", title, onclick, ...props }, words);
export const iconButton = (name, title, onclick, props = {}) =>
  h("button", { type: "button", title, "aria-label": title, className: "ullsam-icon", onclick, ...props }, icon(name));
export const group = (name, ...children) =>
  h("div", { className: "ullsam-group", role: "group", "aria-label": name }, ...children);
export const section = (title, open, ...children) => h("details", { open }, h("summary", {}, title), ...children);

// A labelled slider that shows its number; `words` writes it.
export function slider(name, { min, max, step, words = String }, oninput) {
  const output = h("output"), input = h("input", { type: "range", min, max, step, "aria-label": name });
  input.addEventListener("input", () => { output.textContent = words(input.valueAsNumber); oninput(input.valueAsNumber); });
  const set = (value) => { input.value = value; output.textContent = words(input.valueAsNumber); };
  return { node: h("label", { className: "ullsam-slider" }, h("span", {}, name), input, output), set, input };
}

// A labelled menu of [value, words]; hidden where there is nothing to choose.
export function menu(name, onchange) {
  const select = h("select", { "aria-label": name, onchange: () => onchange(select.value) });
  const node = h("label", { className: "ullsam-row" }, h("span", {}, name), select);
  const set = (options, value) => {
    const same = JSON.stringify(options);
    if (select.dataset.options !== same) select.replaceChildren(...options.map(([v, words]) => new Option(words, v)));
    select.dataset.options = same;
    select.value = String(value);
    node.hidden = options.length < 2;
  };
  return { node, set };
}

export function check(words, title, onchange) {
  const input = h("input", { type: "checkbox", onchange });
  const node = h("label", { className: "ullsam-check", title }, input, words);
  return { node, set: (on) => { input.checked = on; }, input };
}
