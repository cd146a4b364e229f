// View of ClickToSegment: draws what the kernel sends and reports gestures; it keeps no state of its own.
const SIDE = 768; // longer side of the canvas, pixels
const DOT = 6; // radius of a point on the canvas, pixels
const INSIDE = "#00c853", OUTSIDE = "#ff1744";

const picture = (bytes) => (bytes && bytes.byteLength ? createImageBitmap(new Blob([bytes])) : null);

// Small images are magnified by a whole number, so that each pixel stays a square.
function canvasSize([width, height]) {
  const fit = SIDE / Math.max(width, height);
  const scale = fit >= 2 ? Math.floor(fit) : Math.min(1, fit);
  return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
}

// The pixel under the mouse: its index is the coordinate of its centre.
function pixelAt(event, canvas, [width, height]) {
  const box = canvas.getBoundingClientRect();
  const index = (at, start, length, count) =>
    Math.min(count - 1, Math.max(0, Math.floor(((at - start) / length) * count)));
  return { x: index(event.clientX, box.left, box.width, width), y: index(event.clientY, box.top, box.height, height) };
}

function drawDots(pen, canvas, dots, [width, height]) {
  for (const [x, y, label] of dots) {
    const cx = ((x + 0.5) / width) * canvas.width, cy = ((y + 0.5) / height) * canvas.height;
    pen.beginPath();
    pen.arc(cx, cy, DOT, 0, 2 * Math.PI);
    pen.fillStyle = label ? INSIDE : OUTSIDE;
    pen.fill();
    pen.lineWidth = 1.5;
    pen.strokeStyle = "white";
    pen.moveTo(cx - DOT / 2, cy); // a minus sign, and a plus sign for inside: colour is not the only cue
    pen.lineTo(cx + DOT / 2, cy);
    if (label) {
      pen.moveTo(cx, cy - DOT / 2);
      pen.lineTo(cx, cy + DOT / 2);
    }
    pen.stroke();
  }
}

function element(tag, parent, properties = {}, style = {}) {
  const node = Object.assign(document.createElement(tag), properties);
  Object.assign(node.style, style);
  return parent.appendChild(node);
}

function render({ model, el }) {
  const bar = element("div", el, {}, { display: "flex", gap: "6px", flexWrap: "wrap", margin: "4px 0" });
  const canvas = element("canvas", el, { title: "Left click: inside. Right click or Shift + click: outside. Click a point to remove it." },
    { maxWidth: "100%", cursor: "crosshair", display: "block" });
  const status = element("div", el, {}, { font: "13px sans-serif", margin: "4px 0" });
  const words = element("div", el, {}, { font: "13px sans-serif", margin: "4px 0", maxWidth: `${SIDE}px` });
  status.setAttribute("role", "status");
  let sent = 0, done = model.get("finished");

  const send = (kind, values = {}) => {
    sent += 1;
    showText();
    model.send({ kind, values });
  };
  const press = (label, title, kind) =>
    element("button", bar, { type: "button", textContent: label, title, onclick: () => send(kind) });
  press("Undo", "Take the last step back", "undo");
  press("Clear", "Remove the points of this object", "clear");
  press("Save instance", "Keep this mask and start the next object", "save_instance");
  const vlk = press("VLK", "Vision-language knowledge on or off", "toggle_vlk");
  press("Describe", "Ask the language model about the image (takes seconds)", "describe");

  function showText() {
    status.textContent = sent > 0 ? "Working ..." : model.get("status");
    words.textContent = model.get("description");
    vlk.textContent = model.get("vlk") ? "VLK: on" : "VLK: off";
    vlk.setAttribute("aria-pressed", String(model.get("vlk")));
  }

  let turn = 0; // pictures decode in their own time: only the newest drawing may reach the canvas
  async function draw() {
    const mine = ++turn;
    const layers = await Promise.all([picture(model.get("image_jpeg")), picture(model.get("mask_png"))]);
    if (mine !== turn) return;
    [canvas.width, canvas.height] = canvasSize(model.get("size"));
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    for (const layer of layers) if (layer) pen.drawImage(layer, 0, 0, canvas.width, canvas.height);
    drawDots(pen, canvas, model.get("dots"), model.get("size"));
  }

  const point = (event, positive) => {
    event.preventDefault();
    event.stopPropagation();
    send("click", { ...pixelAt(event, canvas, model.get("size")), positive });
  };
  canvas.addEventListener("click", (event) => point(event, !event.shiftKey));
  canvas.addEventListener("contextmenu", (event) => point(event, false));

  const finish = () => {
    sent = Math.max(0, sent - (model.get("finished") - done));
    done = model.get("finished");
    showText();
  };
  const listeners = [
    ["change:finished", finish], ["change:status", showText], ["change:description", showText], ["change:vlk", showText],
    ["change:image_jpeg", draw], ["change:mask_png", draw], ["change:dots", draw],
  ];
  for (const [event, listener] of listeners) model.on(event, listener);
  showText();
  draw();
  return () => listeners.forEach(([event, listener]) => model.off(event, listener));
}

export default { render };
