// What the front end of ClickToSegment works out, without a page: places, keys, words and the layers' borders.

export const REACH = { mouse: 10, pen: 14, touch: 22 }; // how near to a point a pointer must be to mean it, CSS pixels
const LARGEST = 48; // CSS pixels per image pixel at full zoom

// ---- geometry: a view {scale, x, y} shows corner (u, v) of the image at CSS pixel (x + scale u, y + scale v) ----

const settle = (offset, length, room) =>
  length <= room ? (room - length) / 2 : Math.min(0, Math.max(room - length, offset));

// Keeps the image in the room: centred where it is smaller, without a gap where it is larger.
export const settled = ({ scale, x, y }, [width, height], [w, h]) =>
  ({ scale, x: settle(x, width * scale, w), y: settle(y, height * scale, h) });

export const fitted = (size, room) =>
  settled({ scale: Math.min(LARGEST, room[0] / size[0], room[1] / size[1]), x: 0, y: 0 }, size, room);

// Zoom that leaves the place under [cx, cy] where it is.
export function zoomed(view, factor, [cx, cy], size, room) {
  const scale = Math.min(LARGEST, Math.max(fitted(size, room).scale / 2, view.scale * factor));
  const ratio = scale / view.scale;
  return settled({ scale, x: cx - (cx - view.x) * ratio, y: cy - (cy - view.y) * ratio }, size, room);
}

// Two fingers, each [x, y], before and after: zoom by their distance and follow their middle.
export function pinched(view, [a, b], [c, d], size, room) {
  const far = (p, q) => Math.max(1, Math.hypot(p[0] - q[0], p[1] - q[1]));
  const middle = (p, q) => [(p[0] + q[0]) / 2, (p[1] + q[1]) / 2];
  const [from, to] = [middle(a, b), middle(c, d)];
  const moved = { ...view, x: view.x + to[0] - from[0], y: view.y + to[1] - from[1] };
  return zoomed(moved, far(c, d) / far(a, b), to, size, room);
}

// A mouse event in CSS pixels of the canvas, also where the page is scaled.
export const localPoint = (event, rect, [w, h]) =>
  [((event.clientX - rect.left) * w) / rect.width, ((event.clientY - rect.top) * h) / rect.height];

// Index of the image pixel at a CSS pixel; its index is the coordinate of its centre. Outside: the nearest one.
export function pixelAt(view, [px, py], [width, height]) {
  const index = (at, start, count) => Math.min(count - 1, Math.max(0, Math.floor((at - start) / view.scale)));
  return [index(px, view.x, width), index(py, view.y, height)];
}

export const onImage = (view, [px, py], [width, height]) =>
  px >= view.x && py >= view.y && px < view.x + width * view.scale && py < view.y + height * view.scale;

// CSS pixel of the centre of image pixel (x, y).
export const shownAt = (view, [x, y]) => [view.x + (x + 0.5) * view.scale, view.y + (y + 0.5) * view.scale];

// Index of the nearest of `points` within `reach` CSS pixels of `at`, or -1.
export function hitPoint(view, points, at, reach) {
  const far = points.map((p) => { const [x, y] = shownAt(view, p); return Math.hypot(x - at[0], y - at[1]); });
  const best = far.indexOf(Math.min(...far));
  return best >= 0 && far[best] <= reach ? best : -1;
}

// Box between two pixels, or null where it has no width or height.
export function boxOf([x0, y0], [x1, y1]) {
  const box = { x0: Math.min(x0, x1), y0: Math.min(y0, y1), x1: Math.max(x0, x1), y1: Math.max(y0, y1) };
  return box.x0 < box.x1 && box.y0 < box.y1 ? box : null;
}

// Pixels of the canvas behind `length` CSS pixels.
export const backing = (length, ratio) => Math.max(1, Math.round(length * ratio));

// ---- keys ----

const KEYS = { s: { send: "save_instance" }, u: { send: "undo" }, r: { send: "redo" }, v: { send: "toggle_vlk" },
  d: { send: "describe" }, Escape: { act: "escape" }, n: { act: "next" }, e: { act: "edit" }, Delete: { act: "delete" },
  w: { act: "words" }, "0": { act: "fit" }, "+": { inside: true }, "=": { inside: true }, "-": { inside: false } };
export const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// What a key means: {send}, {act}, {inside}, {move, fine} or {place, flip}; the last two only on the picture.
export function keyAction({ key, shiftKey, ctrlKey, metaKey, altKey }, onPicture = true) {
  const letter = key.length === 1 ? key.toLowerCase() : key;
  if (altKey) return null;
  if (ctrlKey || metaKey) return { z: { send: shiftKey ? "redo" : "undo" }, y: { send: "redo" } }[letter] ?? null;
  if (onPicture && ARROWS[key]) return { move: ARROWS[key], fine: Boolean(shiftKey) };
  if (onPicture && key === "Enter") return { place: true, flip: Boolean(shiftKey) };
  return KEYS[letter] ?? null;
}

// ---- words ----

// What the box of words asks Python for, {kind, values}, or null: when Enter is pressed or when the box is left. `asked` is
// what it asked for last; `prompted` says that there is a point or a box, which Enter would not throw away.
export function asksFor(typed, { asked, enter, prompted }) {
  const words = typed.trim().replace(/\s+/g, " ");
  if (enter && words && !prompted) return { kind: "segment_words", values: { words } };
  return words === asked ? null : { kind: "set_words", values: { words } };
}

// ---- layers: numbers of instances per pixel, 0 elsewhere ----

// A layer as Python sends it: the part [x, y, width, height] that holds something, on a grid [width, height]; its pixels
// are zlib data.
export async function opened(bytes) {
  const numbers = [0, 1, 2, 3, 4, 5].map((i) => bytes.getUint32(4 * i, true));
  const packed = new Blob([new Uint8Array(bytes.buffer, bytes.byteOffset + 24, bytes.byteLength - 24)]);
  const data = new Response(packed.stream().pipeThrough(new DecompressionStream("deflate")));
  return { part: numbers.slice(0, 4), grid: numbers.slice(4), data: new Uint8Array(await data.arrayBuffer()) };
}

// Packed bits, the first in the highest place, to 0 and 1.
export function unpack(bytes, count) {
  const ids = new Uint8Array(count);
  for (let i = 0; i < count; i++) ids[i] = (bytes[i >> 3] >> (7 - (i & 7))) & 1;
  return ids;
}

// Calls edge(a, b, start, end, j) where numbers a and b meet across line j, for each longest stretch of it.
function edges(ids, along, across, stride, step, edge) {
  for (let j = 0; j <= across; j++) {
    for (let i = 0, start = 0, a = 0, b = 0; i <= along; i++) {
      const here = i * stride + j * step;
      const p = i < along && j > 0 ? ids[here - step] : 0, q = i < along && j < across ? ids[here] : 0;
      if (p === a && q === b) continue;
      if (a !== b) edge(a, b, start, i, j);
      start = i; a = p; b = q;
    }
  }
}

// Borders of each number along the sides of pixels: number -> [x0, y0, x1, y1, x0, ...].
export function outlines(ids, width, height) {
  const found = new Map();
  const add = (a, b, ...line) => [a, b].filter(Boolean).forEach((id) => {
    if (!found.has(id)) found.set(id, []);
    found.get(id).push(...line);
  });
  edges(ids, width, height, 1, width, (a, b, x0, x1, y) => add(a, b, x0, y, x1, y));
  edges(ids, height, width, width, 1, (a, b, y0, y1, x) => add(a, b, x, y0, x, y1));
  return found;
}

// Where to write each number: the middle of its longest row.
export function anchors(ids, width, height) {
  const best = new Map();
  for (let y = 0; y < height; y++) {
    for (let x = 0, end; x < width; x = end) {
      const id = ids[y * width + x];
      for (end = x + 1; end < width && ids[y * width + end] === id; ) end++;
      if (!id) continue;
      const old = best.get(id), length = end - x, middle = (x + end) / 2;
      if (!old || length > old.length) best.set(id, { length, x: middle, y: y + 0.5, top: y });
      else if (length === old.length && middle === old.x) old.y = (old.top + y + 1) / 2;
    }
  }
  return best;
}

// What the line below the picture says.
export function statusLine({ busy, silent, waiting, status, failed }) {
  if (busy) return { words: busy, working: true, failed: false };
  if (silent) return { words: "No answer yet: the kernel may be running another cell.", working: true, failed: false };
  return { words: status, working: waiting, failed: failed && !waiting };
}
