// Front end of ClickToSegment. The work lives in Python: the browser draws it and reports gestures as {kind, values, id}.
// It keeps only how a person looks at the picture: zoom, cursor, opacity, inside or outside.

import { asksFor, keyAction, statusLine } from "./click_logic.js";
import { button, check, group, h, iconButton, menu, section, slider } from "./click_parts.js";
import { Stage } from "./click_stage.js";

const QUESTION = "What do you want to segment?";
const PATIENCE = 4000; // ms without an answer before the status says so
const SETTLED = 300; // ms on a page before it is encoded ahead of the first click
const CONTRAST = { low: 0, high: 100, gamma: 1 };
const MASKS = ["single mask", "candidate 1", "candidate 2", "candidate 3"];
const LAYERS = ["image_jpeg", "saved_ids", "mask_bits"];
const ALONE = { "data-lm-suppress-shortcuts": "true", "data-jp-suppress-context-menu": "true" }; // tells JupyterLab
const HELP = [
  ["Left click", "point inside"], ["Right click, Shift + click", "point outside"], ["Drag", "box"],
  ["Click on a point", "removes it"], ["Drag a point", "moves it"], ["Wheel, pinch", "zoom"],
  ["Space + drag, middle button, two fingers", "move the picture"], ["Arrows", "move the cursor, with Shift by one pixel"],
  ["Enter", "point at the cursor, with Shift of the other kind"], ["+ and \u2212", "inside, outside"],
  ["S", "save the instance"], ["U, R", "undo, redo"], ["N", "next saved instance"], ["E, Delete", "edit it, delete it"],
  ["W", "to the box of words"], ["Enter there", "uses the words; without a point or box, for all that they name"],
  ["V", "VLK on or off"], ["D", "describe"], ["Escape", "clear the points"], ["0", "whole picture"],
];

// ---- talking to Python ----

class Link {
  constructor(model, changed) {
    Object.assign(this, { model, changed, silent: false });
    this.waiting = new Map(); // id -> kind of each gesture that is not answered yet
    this.newest = new Map(); // kind -> values of a slider that moved on while its last gesture is dealt with
  }
  get(name) { return this.model.get(name); }
  get shown() { return this.model.get("shown"); }
  send(kind, values = {}) {
    const id = Math.random().toString(36).slice(2);
    this.waiting.set(id, kind);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => { this.silent = this.waiting.size > 0; this.changed(); }, PATIENCE);
    this.model.send({ kind, values, id });
    this.changed();
  }
  isAsked(kind) { return [...this.waiting.values()].includes(kind); }
  sendNewest(kind, values) {
    if (this.isAsked(kind)) this.newest.set(kind, values); else this.send(kind, values);
  }
  answered(id) {
    const kind = this.waiting.get(id), next = this.newest.get(kind);
    if (!this.waiting.delete(id)) return;
    this.silent = false;
    if (this.newest.delete(kind)) this.send(kind, next);
    this.changed();
  }
  encodeAhead() { // once for each image and model, after a moment of rest
    const { encoded, model, page, channel } = this.shown, key = JSON.stringify([model, page, channel]);
    if (encoded || this.ahead === key) return;
    this.ahead = key;
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.send("encode"), SETTLED);
  }
  close() { clearTimeout(this.timer); clearTimeout(this.rest); }
}

// ---- tool bar, words, list of instances, settings: each {node, refresh} ----

function toolbar(link, stage, full) {
  const kind = (inside, words, sign, key) => h("button", {
    type: "button", className: inside ? "ullsam-inside" : "ullsam-outside",
    title: `The next points are ${words.toLowerCase()} (key ${key})`,
    onclick: () => { stage.inside = inside; stage.changed(); },
  }, h("b", { "aria-hidden": "true" }, sign), words);
  const sends = (make, words, title, gesture, props) => make(words, title, () => link.send(gesture), props);
  const inside = kind(true, "Inside", "+", "+"), outside = kind(false, "Outside", "\u2212", "-");
  const undo = sends(iconButton, "undo", "Undo (U)", "undo"), redo = sends(iconButton, "redo", "Redo (R)", "redo");
  const clear = sends(button, "Clear", "Remove the points and the box of this object (Escape)", "clear");
  const noBox = sends(button, "Remove box", "Remove the box, keep the points", "clear_box");
  const save = sends(button, "Save instance", "Keep this mask and start the next object (S)", "save_instance",
    { className: "ullsam-main" });
  const describe = sends(button, "Describe", "Ask the language model about the image, takes seconds (D)", "describe");
  const zoom = h("output", { "aria-label": "Zoom" });
  const node = h("div", { className: "ullsam-bar", role: "toolbar", "aria-label": "Tools" },
    group("Kind of point", inside, outside), group("Steps", undo, redo, clear, noBox),
    group("Zoom", iconButton("minus", "Zoom out", () => stage.zoom(1 / 1.5)), zoom,
      iconButton("plus", "Zoom in", () => stage.zoom(1.5)), iconButton("whole", "Whole picture (0)", () => stage.fit()),
      iconButton("screen", "Full screen on or off", full)),
    h("div", { className: "ullsam-group" }, save, describe));
  const refresh = () => {
    const { can_undo, can_redo, box, points, editing, alone, area } = link.shown, held = document.activeElement;
    inside.setAttribute("aria-pressed", stage.inside);
    outside.setAttribute("aria-pressed", !stage.inside);
    undo.disabled = !can_undo;
    redo.disabled = !can_redo;
    clear.disabled = !points.length && !box && !alone && editing === null;
    noBox.hidden = !box;
    save.disabled = !area;
    zoom.textContent = stage.view ? `${Math.round(100 * stage.view.scale)}%` : "";
    if (node.contains(held) && (held.disabled || held.hidden)) stage.focus(); // or keys would go nowhere
  };
  return { node, refresh };
}

// The box of words: what is typed counts once Enter is pressed or the box is left.
function wordBox(link, stage) {
  const id = `ullsam-${Math.random().toString(36).slice(2)}`;
  let asked = ""; // what was asked for last, or what Python says there is
  const ask = (enter) => {
    const prompted = link.shown.points.length + stage.pending.length > 0 || Boolean(link.shown.box);
    const wish = asksFor(input.value, { asked, enter, prompted });
    if (!wish) return;
    asked = wish.values.words;
    link.send(wish.kind, wish.values);
  };
  const input = h("input", { type: "text", "aria-label": QUESTION, "aria-describedby": `${id}-why`, autocomplete: "off",
    onchange: () => ask(false), onkeydown: (event) => { if (event.key === "Enter" && !event.isComposing) ask(true); } });
  input.setAttribute("list", id); // its property is a node
  const all = button("Segment all", "Segment all that the words name, without a click", () => {
    asked = input.value;
    link.send("segment_words", { words: input.value });
  }, { onmousedown: (event) => event.preventDefault() }); // the box is not left, which would ask twice
  const list = h("datalist", { id }, ...link.get("suggestions").map((phrase) => new Option(phrase, phrase)));
  const why = h("p", { id: `${id}-why`, className: "ullsam-hint" });
  const node = h("div", { className: "ullsam-ask" }, h("label", {}, h("span", {}, QUESTION), input), list, all, why);
  const refresh = () => {
    const { words, no_words } = link.shown;
    input.disabled = all.disabled = Boolean(no_words);
    why.textContent = no_words;
    if (link.waiting.size) return;
    if (document.activeElement !== input || input.value === asked) input.value = words;
    asked = words;
  };
  return { node, refresh, focus: () => { input.focus(); input.select(); } };
}

function instanceList(link, stage) {
  const list = h("ul", { className: "ullsam-list" }), hint = h("p", { className: "ullsam-hint" });
  const title = h("span"), next = button("Next", "Select the next saved instance (N)", () => act.next());
  const node = h("details", { open: true }, h("summary", {}, title), hint, list, next);
  const chosen = (act) => () => link.shown.selected !== null && act(link.shown.selected);
  const act = {
    next: () => {
      const numbers = link.shown.instances.map((i) => i.number), at = numbers.indexOf(link.shown.selected) + 1;
      if (numbers.length) link.send("select", { number: numbers[at % numbers.length] });
    },
    edit: chosen((number) => link.send("edit", { number })),
    delete: chosen((number) => link.send("delete", { number })),
  };
  function row({ number, name, words, area, page }) {
    const { selected, editing, pages } = link.shown, call = `instance ${number}, ${name}`;
    const pick = button(String(number), `Select ${call}`, () =>
      link.send("select", { number: link.shown.selected === number ? null : number }), { "aria-label": `Select ${call}`,
      "aria-pressed": number === selected, className: "ullsam-number", "data-key": `pick${number}` });
    pick.style.setProperty("--own", `rgb(${link.get("colors")[number] ?? [128, 128, 128]})`);
    const named = h("input", { type: "text", value: name, maxLength: 80, "aria-label": `Name of instance ${number}`,
      title: words && `Segmented as \u201c${words}\u201d`,
      "data-key": `name${number}`, onkeydown: (event) => event.key === "Enter" && stage.focus(), onchange: () => {
        if (named.value.trim()) link.send("rename", { number, name: named.value }); else named.value = name;
      } });
    const where = pages > 1 ? `, page ${page + 1}` : "", now = number === editing ? ", editing" : "";
    const edit = iconButton("edit", `Edit ${call}`, () => link.send("edit", { number }), { "data-key": `edit${number}` });
    const gone = iconButton("cross", `Delete ${call}`, () => link.send("delete", { number }),
      { "data-key": `gone${number}` });
    return h("li", { className: number === selected ? "ullsam-selected" : "" }, pick, named,
      h("small", {}, `${area} px${where}${now}`), edit, gone);
  }
  const refresh = () => {
    const { instances, selected, editing } = link.shown;
    const now = JSON.stringify([instances, selected, editing, link.get("colors")]);
    if (list.dataset.now === now) return;
    list.dataset.now = now;
    const held = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    list.replaceChildren(...instances.map(row));
    if (held) (list.querySelector(`[data-key="${held}"]`) ?? stage.canvas).focus();
    title.textContent = `Saved instances (${instances.length})`;
    hint.textContent = instances.length ? "" : "None yet: click on an object, then save it.";
    list.hidden = next.hidden = !instances.length;
    const mark = stage.layers.saved_ids?.anchors?.get(selected);
    if (mark && stage.view) stage.show(mark);
  };
  return { node, refresh, act };
}

function settings(link, stage) {
  const model = menu("Model", (name) => link.send("set_model", { name }));
  const mask = menu("Mask", (k) => link.send("set_candidate", { k: Number(k) }));
  const vlk = check("Vision-language knowledge (VLK)", "What the language model knows helps to segment (V)",
    () => link.send("toggle_vlk"));
  const negatives = check("Automatic outside points", "Adds three points in a ring around the mask",
    () => link.send("toggle_negatives"));
  const opacity = slider("Opacity", { min: 0, max: 1, step: 0.05, words: (v) => `${Math.round(100 * v)}%` },
    (value) => { stage.opacity = value; stage.draw(); });
  const contrast = () => link.sendNewest("set_display",
    { low: low.input.valueAsNumber, high: high.input.valueAsNumber, gamma: gamma.input.valueAsNumber });
  const percent = { min: 0, max: 100, step: 0.5, words: (v) => `${v}%` };
  const low = slider("Dark end", percent, (v) => { high.set(Math.max(high.input.valueAsNumber, v + 0.5)); contrast(); });
  const high = slider("Bright end", percent, (v) => { low.set(Math.min(low.input.valueAsNumber, v - 0.5)); contrast(); });
  const gamma = slider("Gamma", { min: 0.2, max: 4, step: 0.05, words: (v) => v.toFixed(2) }, contrast);
  const channel = menu("Channel", (c) => link.send("set_channel", { channel: c === "null" ? null : Number(c) }));
  const reset = button("Reset contrast", "Show the picture as it is", () => link.sendNewest("set_display", CONTRAST));
  opacity.set(stage.opacity);
  const nodes = [
    section("Segmentation", true, model.node, mask.node, vlk.node, negatives.node),
    section("Picture", false, channel.node, opacity.node, low.node, high.node, gamma.node, reset),
  ];
  const refresh = () => {
    const s = link.shown;
    if (link.waiting.size) return; // what was chosen stays until Python has answered
    model.set(s.models.map((name) => [name, name]), s.model);
    mask.set(MASKS.map((words, k) => [k, words]), s.candidate);
    vlk.set(s.vlk);
    vlk.input.disabled = !s.has_vlk;
    negatives.set(s.negatives);
    channel.set([["null", "all together"], ...s.channels.map((name, c) => [c, name])], s.channel);
    for (const [name, part] of Object.entries({ low, high, gamma }))
      if (document.activeElement !== part.input) part.set(s[name]); // not under a hand that moves it
  };
  return { nodes, refresh };
}

function exporter(link) {
  const kinds = link.shown.exports.map(([kind, words]) => ({ kind, ...check(words, "", () => refresh()) }));
  const go = button("Export", "Write the chosen files", () =>
    link.send("export", { formats: kinds.filter((k) => k.input.checked).map((k) => k.kind) }));
  const folder = h("p", { className: "ullsam-hint" });
  kinds[0]?.set(true);
  const refresh = () => {
    go.disabled = !link.shown.instances.length || !kinds.some((k) => k.input.checked);
    folder.textContent = `Folder: ${link.shown.folder}`;
  };
  const node = section("Export", false, ...kinds.map((k) => k.node), folder, go);
  node.hidden = !kinds.length; // the app has a download instead
  return { node, refresh };
}

function help() {
  const rows = HELP.map(([gesture, meaning]) => h("div", {}, h("dt", {}, gesture), h("dd", {}, meaning)));
  return section("Gestures and keys", false, h("dl", { className: "ullsam-help" }, ...rows));
}

// What stands below the picture, so that no sentence moves it: page, status, place, hint at unknown words, description; and
// the words for those who hear the page.
function readout(link, stage, root) {
  const page = slider("Page", { min: 0, max: 0, step: 1, words: (z) => `${z + 1} of ${link.shown.pages}` },
    (z) => link.sendNewest("set_page", { z }));
  const part = (tag, name, props = {}, ...children) => h(tag, { className: `ullsam-${name}`, ...props }, ...children);
  const status = part("div", "status", { role: "status" }), progress = part("div", "progress");
  const place = part("span", "place");
  const hint = part("p", "hint", { "aria-live": "polite" });
  const spoken = part("span", "spoken", { "aria-live": "polite" });
  const words = part("blockquote", "words", { hidden: true, "aria-live": "polite", "aria-label": "Description" });
  const node = part("div", "left", {}, part("div", "stage", {}, stage.canvas, progress), page.node,
    part("div", "line", {}, status, place), hint, words, spoken);
  const pointed = () => {
    const at = stage.cursor ?? stage.hover, [width, height] = stage.size;
    place.textContent = at ? `x ${at[0]}, y ${at[1]}` : `${width} \u00d7 ${height} px`;
    if (stage.cursor) spoken.textContent = place.textContent;
  };
  const refresh = () => {
    const line = statusLine({ busy: link.get("busy"), silent: link.silent, waiting: link.waiting.size > 0,
      status: link.get("status"), failed: link.get("failed") });
    if (status.textContent !== line.words) status.textContent = line.words;
    status.classList.toggle("ullsam-failed", line.failed);
    progress.classList.toggle("ullsam-working", line.working);
    root.setAttribute("aria-busy", line.working);
    if (hint.textContent !== link.shown.hint) hint.textContent = link.shown.hint;
    words.textContent = link.get("description");
    if (words.hidden && words.textContent && link.isAsked("describe"))
      requestAnimationFrame(() => words.scrollIntoView({ block: "nearest" }));
    words.hidden = !words.textContent;
    page.node.hidden = link.shown.pages < 2;
    page.input.max = link.shown.pages - 1;
    if (document.activeElement !== page.input) page.set(link.shown.page);
    stage.canvas.setAttribute("aria-label", `Image of ${stage.size.join(" by ")} pixels with ${stage.points.length} ` +
      "points. Arrow keys move the cursor, Enter places a point.");
    pointed();
  };
  return { node, refresh, pointed };
}

// Keys work wherever the focus is in the widget, but not while a name is typed.
function keyboard(root, link, stage, acts, refresh) {
  const down = (event) => {
    const onPicture = event.target === stage.canvas, sliding = event.target.matches("input[type=range]");
    if (event.key === " " && onPicture) { stage.space = true; event.preventDefault(); return; }
    if (event.target.matches("input[type=text], select") || (sliding && event.key.length > 1)) return;
    const action = keyAction(event, onPicture);
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    if (action.move) stage.steer(action.move, action.fine);
    else if (event.repeat) return;
    else if (action.place) stage.placeAtCursor(action.flip);
    else if (action.send) link.send(action.send);
    else if (action.act) acts[action.act]();
    else { stage.inside = action.inside; stage.draw(); }
    refresh();
  };
  const up = (event) => { if (event.key === " ") stage.space = false; };
  root.addEventListener("keydown", down);
  window.addEventListener("keyup", up);
  return () => window.removeEventListener("keyup", up);
}

// ---- the widget ----

function render({ model, el }) {
  const parts = [];
  const refresh = () => {
    if (!link.waiting.size) { stage.settle(); link.encodeAhead(); }
    parts.forEach((part) => part.refresh());
  };
  const link = new Link(model, refresh), stage = new Stage(link, refresh, () => below.pointed());
  const root = h("div", { className: "ullsam", tabIndex: -1, ...ALONE });
  const full = () => (document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen?.());
  const below = readout(link, stage, root), tools = toolbar(link, stage, full), saved = instanceList(link, stage);
  const asking = wordBox(link, stage), choices = settings(link, stage), files = exporter(link);
  parts.push(tools, asking, saved, choices, files, below);
  root.append(tools.node, asking.node, h("div", { className: "ullsam-body" }, below.node,
    h("div", { className: "ullsam-side" }, saved.node, ...choices.nodes, files.node, help())));
  el.append(root);

  const escape = () => stage.cancel() || link.send("clear");
  const acts = { ...saved.act, words: asking.focus, fit: () => stage.fit(), escape };
  const deaf = keyboard(root, link, stage, acts, refresh);
  const listeners = [
    ["msg:custom", (message) => link.answered(message?.answered)], ["change:size", () => stage.resize()],
    ["change:shown", () => { refresh(); stage.draw(); }],
    ...["status", "failed", "busy", "description"].map((name) => [`change:${name}`, refresh]),
    ...LAYERS.map((name) => [`change:${name}`, () => stage.load(name)]),
  ];
  for (const [event, listener] of listeners) model.on(event, listener);
  LAYERS.forEach((name) => stage.load(name));
  refresh();
  return () => {
    for (const [event, listener] of listeners) model.off(event, listener);
    deaf();
    stage.close();
    link.close();
  };
}

export default { render };
