// The picture of ClickToSegment: what is drawn, and the gestures of mouse, pen, fingers and arrow keys on it.

import {
  ARROWS, REACH, anchors, backing, boxOf, fitted, hitPoint, localPoint, onImage, opened, outlines, pinched, pixelAt,
  settled, shownAt, unpack, zoomed,
} from "./click_logic.js";

const STILL = { mouse: 4, pen: 6, touch: 10 }; // a pointer that moves less has clicked, CSS pixels
const STEP = 10; // CSS pixels of one arrow key
const MASK = [255, 215, 0];
const EDGE = "rgba(0,0,0,.75)"; // dark rim that keeps light lines visible on a light image

// A layer ready to be drawn: its colours, and the outline of each number.
function painted(ids, { part, grid }, colour) {
  const [left, top, width, height] = part;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const pen = canvas.getContext("2d"), data = pen.createImageData(width, height), pixels = new Uint32Array(data.data.buffer);
  const packed = ([r, g, b]) => new Uint32Array(new Uint8Array([r, g, b, 255]).buffer)[0];
  for (let i = 0, last = 0, value = 0; i < ids.length; i++) {
    if (ids[i] !== last) { last = ids[i]; value = last ? packed(colour(last)) : 0; }
    pixels[i] = value;
  }
  pen.putImageData(data, 0, 0);
  const lines = [...outlines(ids, width, height)].map(([id, line]) => {
    const path = new Path2D();
    for (let i = 0; i < line.length; i += 4) { path.moveTo(line[i], line[i + 1]); path.lineTo(line[i + 2], line[i + 3]); }
    return { id, path, colour: `rgb(${colour(id)})` };
  });
  return { canvas, lines, left, top, grid };
}

// ---- picture: drawing and pointer gestures ----

export class Stage {
  // changed() is called when controls must follow, pointed() when only the place under the pointer is another.
  constructor(link, changed, pointed) {
    Object.assign(this, { link, changed, pointed, inside: true, opacity: 0.4, pending: [] });
    Object.assign(this, { layers: {}, turns: {}, loaded: {} });
    Object.assign(this, { view: null, whole: true, cursor: null, hover: null, drag: null, pointers: new Map() });
    this.canvas = Object.assign(document.createElement("canvas"), { className: "ullsam-canvas", tabIndex: 0 });
    const on = (name, act, options) => this.canvas.addEventListener(name, act.bind(this), options);
    on("pointerdown", this.down); on("pointermove", this.move); on("pointerup", this.up); on("pointercancel", this.drop);
    on("wheel", this.wheel, { passive: false });
    on("mousedown", (event) => { if (event.button === 1) event.preventDefault(); }); // no scrolling by the middle button
    on("contextmenu", (event) => { event.preventDefault(); event.stopPropagation(); });
    on("pointerleave", () => { this.hover = null; this.pointed(); });
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.canvas);
    this.elsewhere = (event) => { if (event.target !== this.canvas) this.scrolled = event.timeStamp; };
    window.addEventListener("wheel", this.elsewhere, { passive: true });
  }
  get size() { return this.link.get("size"); }
  get room() { return [this.canvas.clientWidth || 1, this.canvas.clientHeight || 1]; }
  get points() { return this.link.shown.points; }

  focus() { if (document.activeElement !== this.canvas) this.canvas.focus({ preventScroll: true }); }
  async load(name) { // layers decode in their own time: only the newest may be shown
    const turn = (this.turns[name] = (this.turns[name] ?? 0) + 1), bytes = this.link.get(name);
    const layer = bytes?.byteLength ? await this.decode(name, bytes) : null;
    if (turn !== this.turns[name]) return;
    this.layers[name] = layer;
    this.loaded[name] = turn;
    if (name === "saved_ids") this.changed();
    this.draw();
  }
  async decode(name, bytes) {
    if (name === "image_jpeg") return createImageBitmap(new Blob([bytes]));
    const layer = await opened(bytes), [left, top, width, height] = layer.part, colours = this.link.get("colors");
    if (name === "mask_bits") return painted(unpack(layer.data, width * height), layer, () => MASK);
    const ids = new Uint32Array(layer.data.buffer), zoom = this.size[0] / layer.grid[0];
    const places = [...anchors(ids, width, height)].map(([id, { x, y }]) =>
      [id, [(left + x) * zoom - 0.5, (top + y) * zoom - 0.5]]);
    return { ...painted(ids, layer, (id) => colours[id] ?? [128, 128, 128]), anchors: new Map(places) };
  }
  resize() { // a cell that is scrolled away may have left the page, and what was looked at must be there when it is back
    if (!this.canvas.clientWidth) return;
    this.canvas.style.setProperty("--ratio", this.size[0] / this.size[1]);
    this.look(this.whole || !this.view ? fitted(this.size, this.room) : settled(this.view, this.size, this.room));
  }
  look(view) {
    const whole = fitted(this.size, this.room);
    this.view = view;
    this.whole = Math.abs(view.scale / whole.scale - 1) < 1e-6;
    this.canvas.dataset.view = JSON.stringify(view);
    this.changed();
    this.draw();
  }
  fit() { this.look(fitted(this.size, this.room)); }
  get middle() { return this.room.map((length) => length / 2); }
  zoom(factor, at = this.middle) { this.look(zoomed(this.view, factor, at, this.size, this.room)); }
  show(pixel) { // moves the picture so that a pixel is well inside
    const [px, py] = shownAt(this.view, pixel), [w, h] = this.room, edge = 24;
    const dx = Math.max(0, edge - px) - Math.max(0, px - w + edge), dy = Math.max(0, edge - py) - Math.max(0, py - h + edge);
    if (dx || dy) this.look(settled({ ...this.view, x: this.view.x + dx, y: this.view.y + dy }, this.size, this.room));
    else this.draw();
  }
  at(event) { return localPoint(event, this.canvas.getBoundingClientRect(), this.room); }
  pixel(at) { return pixelAt(this.view, at, this.size); }
  place([x, y], positive) {
    this.pending.push([x, y, Number(positive)]);
    this.link.send("click", { x, y, positive, grab: 0 });
  }
  down(event) {
    if (!this.view) return;
    const at = this.at(event), type = event.pointerType;
    this.canvas.setPointerCapture(event.pointerId);
    this.cursor = null;
    this.pointers.set(event.pointerId, at);
    if (this.pointers.size > 1) { // measured from its start: what is corrected at the image's edge on the way is no drift
      this.drag = { kind: "pinch", view: this.view, fingers: [...this.pointers.values()] };
      return this.draw();
    }
    const outside = event.button === 2 || event.shiftKey || event.ctrlKey;
    const index = hitPoint(this.view, this.points, at, REACH[type] ?? REACH.mouse);
    const pan = event.button === 1 || this.space;
    const kind = pan ? "pan" : event.button === 2 ? "none" : index >= 0 ? "point" : "box";
    this.drag = { kind, index, start: at, now: at, still: true, positive: outside ? false : this.inside, type };
  }
  move(event) {
    const at = this.at(event), before = this.pointers.get(event.pointerId), drag = this.drag;
    this.hover = this.view && onImage(this.view, at, this.size) ? this.pixel(at) : null;
    this.pointed();
    if (!before || !drag) return;
    this.pointers.set(event.pointerId, at);
    if (drag.kind === "pinch" && this.pointers.size === 2 && drag.fingers.length === 2)
      return this.look(pinched(drag.view, drag.fingers, [...this.pointers.values()], this.size, this.room));
    if (drag.kind === "pinch") return;
    drag.now = at;
    if (Math.hypot(at[0] - drag.start[0], at[1] - drag.start[1]) > (STILL[drag.type] ?? STILL.mouse)) drag.still = false;
    if (drag.kind === "pan") {
      const moved = { ...this.view, x: this.view.x + at[0] - before[0], y: this.view.y + at[1] - before[1] };
      return this.look(settled(moved, this.size, this.room));
    }
    this.draw();
  }
  up(event) {
    const drag = this.drag;
    if (event.pointerType !== "touch") this.focus(); // a finger's tap focuses by itself, without a frame for keys
    this.pointers.delete(event.pointerId);
    if (drag?.kind === "pinch") { if (!this.pointers.size) this.drag = null; return; }
    this.drag = null;
    if (!drag || drag.kind === "pan") return;
    const point = this.points[drag.index], [x, y] = this.pixel(drag.now);
    if (drag.still && point) this.link.send("click", { x: point[0], y: point[1], positive: Boolean(point[2]), grab: 0 });
    else if (drag.still && onImage(this.view, drag.start, this.size)) this.place(this.pixel(drag.start), drag.positive);
    else if (drag.kind === "point" && !drag.still) this.link.send("move_point", { index: drag.index, x, y });
    else if (drag.kind === "box" && !drag.still) this.sendBox(boxOf(this.pixel(drag.start), [x, y]));
    this.draw();
  }
  sendBox(box) { if (box) this.link.send("set_box", box); }
  drop(event) { this.pointers.delete(event.pointerId); this.cancel(); }
  cancel() { // stops dragging and says whether there was anything to stop
    const dragged = this.drag;
    this.drag = null;
    this.draw();
    return Boolean(dragged);
  }
  wheel(event) { // a scroll of the page that began elsewhere goes on over the picture, as does one that cannot zoom out
    if (event.timeStamp - (this.scrolled ?? -1e9) < 400 && !event.ctrlKey) { this.scrolled = event.timeStamp; return; }
    if (!this.view || (this.whole && event.deltaY > 0 && !event.ctrlKey)) return;
    event.preventDefault();
    event.stopPropagation();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 30 : 1);
    const back = this.view.scale * Math.exp(-pixels / 400) < fitted(this.size, this.room).scale && !event.ctrlKey;
    if (back) this.fit(); else this.zoom(Math.exp(-pixels / 400), this.at(event));
  }
  steer([dx, dy], fine) { // arrow keys
    const step = fine ? 1 : Math.max(1, Math.round(STEP / this.view.scale));
    const [x, y] = this.cursor ?? this.pixel(this.middle), limit = (value, count) => Math.min(count - 1, Math.max(0, value));
    this.cursor = [limit(x + dx * step, this.size[0]), limit(y + dy * step, this.size[1])];
    this.show(this.cursor);
  }
  settle() { // Python has answered: its points are the ones there are
    if (this.pending.length) this.draw();
    this.pending = [];
  }
  placeAtCursor(flip) {
    if (!this.cursor) return this.steer([0, 0], true);
    const hit = hitPoint(this.view, this.points, shownAt(this.view, this.cursor), REACH.mouse), point = this.points[hit];
    if (point) this.link.send("click", { x: point[0], y: point[1], positive: Boolean(point[2]), grab: 0 });
    else this.place(this.cursor, flip ? !this.inside : this.inside);
  }
  draw() { cancelAnimationFrame(this.frame); this.frame = requestAnimationFrame(() => this.paint()); }
  paint() {
    const [w, h] = this.room, ratio = window.devicePixelRatio || 1, pen = this.canvas.getContext("2d");
    if (!this.view) return;
    this.canvas.width = backing(w, ratio);
    this.canvas.height = backing(h, ratio);
    pen.scale(this.canvas.width / w, this.canvas.height / h);
    paintLayers(pen, this);
    paintPrompts(pen, this);
    this.canvas.dataset.painted = Number(this.canvas.dataset.painted ?? 0) + 1;
    this.canvas.dataset.mask = this.loaded.mask_bits ?? 0; // how many masks have come, the one that is seen included
  }
  close() {
    this.observer.disconnect();
    window.removeEventListener("wheel", this.elsewhere);
    cancelAnimationFrame(this.frame);
  }
}

function paintLayers(pen, { layers, view, size, opacity, link }) {
  const [width, height] = size.map((length) => length * view.scale), selected = link.shown.selected;
  pen.imageSmoothingEnabled = view.scale * (window.devicePixelRatio || 1) < 2;
  if (layers.image_jpeg) pen.drawImage(layers.image_jpeg, view.x, view.y, width, height);
  for (const [name, strength] of [["saved_ids", 0.7], ["mask_bits", 1]]) {
    const layer = layers[name];
    if (!layer) continue;
    const zoom = width / layer.grid[0], line = (style, thick, path) => {
      pen.strokeStyle = style; pen.lineWidth = thick / zoom; pen.stroke(path);
    };
    pen.save();
    pen.translate(view.x, view.y);
    pen.scale(zoom, height / layer.grid[1]);
    pen.translate(layer.left, layer.top);
    pen.globalAlpha = opacity * strength;
    pen.imageSmoothingEnabled = false;
    pen.drawImage(layer.canvas, 0, 0);
    pen.globalAlpha = 1;
    for (const { id, path, colour } of layer.lines) {
      const current = name === "mask_bits", strong = current || id === selected;
      line(EDGE, strong ? 4 : 2.5, path);
      line(strong && !current ? "white" : colour, strong ? 2 : 1.2, path);
    }
    pen.restore();
    layer.anchors?.forEach((place, id) => label(pen, String(id), ...shownAt(view, place)));
  }
}

function label(pen, text, x, y) {
  pen.font = "bold 13px sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.lineWidth = 3;
  pen.lineJoin = "round";
  pen.strokeStyle = EDGE;
  pen.strokeText(text, x, y);
  pen.fillStyle = "white";
  pen.fillText(text, x, y);
}

function paintPrompts(pen, stage) {
  const { box, points, suggested } = stage.link.shown, { drag, view, cursor } = stage;
  const dragged = drag?.kind === "box" && !drag.still ? boxOf(stage.pixel(drag.start), stage.pixel(drag.now)) : null;
  if (dragged || box) frame(pen, view, dragged ?? { x0: box[0], y0: box[1], x1: box[2], y1: box[3] });
  for (const [x, y] of suggested) dot(pen, shownAt(view, [x, y]), false, true);
  points.forEach(([x, y, positive], index) => {
    const held = drag?.kind === "point" && !drag.still && drag.index === index;
    dot(pen, held ? drag.now : shownAt(view, [x, y]), positive, false);
  });
  for (const [x, y, positive] of stage.pending) dot(pen, shownAt(view, [x, y]), positive, true);
  if (cursor) cross(pen, shownAt(view, cursor), stage.inside);
}

function frame(pen, view, { x0, y0, x1, y1 }) {
  const [left, top] = shownAt(view, [x0, y0]), [right, bottom] = shownAt(view, [x1, y1]);
  for (const [style, dash] of [[EDGE, []], ["white", [6, 4]]]) {
    pen.setLineDash(dash);
    pen.strokeStyle = style;
    pen.lineWidth = 2;
    pen.strokeRect(left, top, right - left, bottom - top);
  }
  pen.setLineDash([]);
}

// Inside: a circle with a plus; outside: a square with a minus; not settled yet: hollow and dashed.
function dot(pen, [x, y], positive, hollow) {
  const r = 7, colour = positive ? "#008a4e" : "#d1103b";
  pen.beginPath();
  if (positive) pen.arc(x, y, r, 0, 2 * Math.PI); else pen.rect(x - r + 1, y - r + 1, 2 * r - 2, 2 * r - 2);
  pen.fillStyle = hollow ? "rgba(255,255,255,.75)" : colour;
  pen.fill();
  pen.lineWidth = 1.6;
  pen.setLineDash(hollow ? [3, 2] : []);
  pen.strokeStyle = hollow ? colour : "white";
  pen.stroke();
  pen.setLineDash([]);
  pen.beginPath();
  pen.moveTo(x - 3.5, y); pen.lineTo(x + 3.5, y);
  if (positive) { pen.moveTo(x, y - 3.5); pen.lineTo(x, y + 3.5); }
  pen.stroke();
}

function cross(pen, [x, y], inside) {
  for (const [style, thick] of [[EDGE, 4], ["white", 2]]) {
    pen.beginPath();
    for (const [dx, dy] of Object.values(ARROWS)) {
      pen.moveTo(x + 6 * dx, y + 6 * dy);
      pen.lineTo(x + 16 * dx, y + 16 * dy);
    }
    pen.strokeStyle = style;
    pen.lineWidth = thick;
    pen.stroke();
  }
  label(pen, inside ? "+" : "\u2212", x + 14, y - 13);
}
