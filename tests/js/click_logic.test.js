import { deflateSync } from "node:zlib";

import { describe, expect, it } from "vitest";

import {
  anchors, asksFor, backing, boxOf, fitted, hitPoint, keyAction, localPoint, onImage, opened, outlines, pinched, pixelAt,
  settled, shownAt, statusLine, unpack, zoomed,
} from "../../ullsam/widgets/click_logic.js";

const SIZE = [200, 100], ROOM = [800, 600];
const close = (a, b) => Object.keys(b).forEach((key) => expect(a[key]).toBeCloseTo(b[key], 9));

describe("the picture in its room", () => {
  it("fits as a whole and stands in the middle", () => {
    expect(fitted(SIZE, ROOM)).toEqual({ scale: 4, x: 0, y: 100 });
    expect(fitted([100, 300], ROOM)).toEqual({ scale: 2, x: 300, y: 0 });
  });

  it("keeps the place under the pointer when it zooms", () => {
    const view = { scale: 8, x: -400, y: -100 }, at = [300, 250], place = pixelAt(view, at, SIZE);
    const near = zoomed(view, 1.5, at, SIZE, ROOM);
    expect(near.scale).toBe(12);
    expect(pixelAt(near, at, SIZE)).toEqual(place);
    close(zoomed(near, 1 / 1.5, at, SIZE, ROOM), view);
  });

  it("zooms neither out of sight nor without end", () => {
    const view = fitted(SIZE, ROOM);
    expect(zoomed(view, 1e-9, [0, 0], SIZE, ROOM).scale).toBe(2);
    expect(zoomed(view, 1e9, [0, 0], SIZE, ROOM).scale).toBe(48);
  });

  it("leaves no gap beside a magnified picture", () => {
    expect(settled({ scale: 8, x: 50, y: -900 }, SIZE, ROOM)).toEqual({ scale: 8, x: 0, y: -200 });
    expect(settled({ scale: 2, x: 50, y: -900 }, SIZE, ROOM)).toEqual({ scale: 2, x: 200, y: 200 });
  });

  it("follows two fingers", () => {
    const view = { scale: 8, x: -400, y: -100 };
    const moved = pinched(view, [[100, 300], [200, 300]], [[150, 320], [250, 320]], SIZE, ROOM);
    expect(moved).toEqual({ scale: 8, x: -350, y: -80 });
    const larger = pinched(view, [[100, 300], [200, 300]], [[50, 300], [250, 300]], SIZE, ROOM);
    expect(larger.scale).toBe(16);
    expect(pixelAt(larger, [150, 300], SIZE)).toEqual(pixelAt(view, [150, 300], SIZE));
  });
});

describe("from the pointer to the pixel", () => {
  for (const [name, zoom] of [["half", 0.5], ["whole", 1], ["double", 2], ["odd", 3.7]]) {
    it(`finds every part of a pixel at ${name} zoom`, () => {
      const view = { scale: 4 * zoom, x: 13.5, y: -7.25 };
      for (const pixel of [[0, 0], [199, 99], [57, 31]]) {
        const [cx, cy] = shownAt(view, pixel), half = 0.49 * view.scale;
        for (const [dx, dy] of [[0, 0], [half, half], [-half, -half], [half, -half]])
          expect(pixelAt(view, [cx + dx, cy + dy], SIZE)).toEqual(pixel);
      }
    });
  }

  it("is right on a page that is scaled, scrolled, or has more device pixels", () => {
    const rect = { left: 40, top: -20, width: 400, height: 300 }; // a canvas of 800 x 600 CSS pixels shown at half its size
    expect(localPoint({ clientX: 140, clientY: 130 }, rect, ROOM)).toEqual([200, 300]);
    expect([backing(800, 2), backing(333, 1.5), backing(0.2, 1)]).toEqual([1600, 500, 1]);
  });

  it("knows where the picture ends", () => {
    const view = fitted(SIZE, ROOM);
    expect(onImage(view, [0, 100], SIZE)).toBe(true);
    expect(onImage(view, [0, 99], SIZE)).toBe(false);
    expect(onImage(view, [799.9, 499.9], SIZE)).toBe(true);
    expect(onImage(view, [800, 300], SIZE)).toBe(false);
    expect(pixelAt(view, [-50, 9999], SIZE)).toEqual([0, 99]);
  });
});

describe("what a pointer means", () => {
  it("hits the nearest point within reach, whatever the zoom", () => {
    const points = [[10, 10, 1], [12, 10, 0], [50, 50, 1]];
    for (const scale of [1, 4, 20]) {
      const view = { scale, x: 5, y: 9 }, [x, y] = shownAt(view, [12, 10]);
      expect(hitPoint(view, points, [x + 0.6 * scale, y], 10 + scale)).toBe(1);
      expect(hitPoint(view, points, [x, y + 11 + scale], 10)).toBe(-1);
    }
    expect(hitPoint({ scale: 1, x: 0, y: 0 }, [], [0, 0], 10)).toBe(-1);
  });

  it("draws a box from any corner, and none without a side", () => {
    expect(boxOf([9, 2], [4, 7])).toEqual({ x0: 4, y0: 2, x1: 9, y1: 7 });
    expect(boxOf([4, 2], [4, 7])).toBeNull();
    expect(boxOf([4, 7], [9, 7])).toBeNull();
  });
});

describe("keys", () => {
  const key = (name, more = {}, onPicture = true) => keyAction({ key: name, ...more }, onPicture);

  it("send gestures in either case", () => {
    const gestures = { s: "save_instance", u: "undo", r: "redo", d: "describe", v: "toggle_vlk" };
    for (const [name, gesture] of Object.entries(gestures)) {
      expect(key(name)).toEqual({ send: gesture });
      expect(key(name.toUpperCase(), { shiftKey: true }, false)).toEqual({ send: gesture });
    }
  });

  it("choose inside and outside, the next instance and the whole picture", () => {
    expect([key("+"), key("="), key("-")]).toEqual([{ inside: true }, { inside: true }, { inside: false }]);
    expect([key("n"), key("e"), key("Delete"), key("0"), key("Escape"), key("w")].map((a) => a.act))
      .toEqual(["next", "edit", "delete", "fit", "escape", "words"]);
  });

  it("steer the cursor on the picture only", () => {
    expect(key("ArrowUp")).toEqual({ move: [0, -1], fine: false });
    expect(key("ArrowRight", { shiftKey: true })).toEqual({ move: [1, 0], fine: true });
    expect(key("Enter", { shiftKey: true })).toEqual({ place: true, flip: true });
    expect([key("ArrowUp", {}, false), key("Enter", {}, false)]).toEqual([null, null]);
  });

  it("leave the browser's own shortcuts alone", () => {
    expect(key("z", { ctrlKey: true })).toEqual({ send: "undo" });
    expect(key("Z", { metaKey: true, shiftKey: true })).toEqual({ send: "redo" });
    for (const name of ["s", "r", "d", "+", "-", "0"]) expect(key(name, { ctrlKey: true })).toBeNull();
    expect([key("d", { altKey: true }), key("x"), key("Tab"), key(" ")]).toEqual([null, null, null, null]);
  });
});

describe("the box of words", () => {
  const asks = (typed, state) => asksFor(typed, { asked: "cell", enter: false, prompted: false, ...state });
  const sets = (words) => ({ kind: "set_words", values: { words } });

  it("asks once for what is new, and nothing where only spaces are", () => {
    expect(asks(" red \t blood  cells ")).toEqual(sets("red blood cells"));
    expect([asks("cell"), asks("  cell ")]).toEqual([null, null]);
    expect(asks("  ")).toEqual(sets(""));
  });

  it("segments all that is named at Enter, unless a point or a box says which", () => {
    expect(asks("nuclei", { enter: true })).toEqual({ kind: "segment_words", values: { words: "nuclei" } });
    expect(asks(" cell", { enter: true })).toEqual({ kind: "segment_words", values: { words: "cell" } });
    expect(asks("nuclei", { enter: true, prompted: true })).toEqual(sets("nuclei"));
    expect(asks("cell", { enter: true, prompted: true })).toBeNull();
    expect(asks("", { enter: true })).toEqual(sets(""));
    expect(asks("", { enter: true, asked: "" })).toBeNull();
  });
});

describe("layers", () => {
  it("unpack what Python packs", async () => {
    expect([...unpack(new Uint8Array([0b10000001, 0b01000000]), 10)]).toEqual([1, 0, 0, 0, 0, 0, 0, 1, 0, 1]);
    const head = new Uint8Array(new Uint32Array([3, 4, 2, 2, 70000, 8]).buffer);
    const pixels = deflateSync(new Uint8Array([0, 1, 2, 250]));
    const sent = new Uint8Array([99, ...head, ...pixels]); // as part of a longer buffer
    const layer = await opened(new DataView(sent.buffer, 1));
    expect(layer).toEqual({ part: [3, 4, 2, 2], grid: [70000, 8], data: new Uint8Array([0, 1, 2, 250]) });
  });

  // Sides of pixels between different numbers, counted one by one.
  function sides(ids, width, height) {
    const count = {}, at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : ids[y * width + x]);
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++)
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]])
        if (at(x, y) && at(x + dx, y + dy) !== at(x, y)) count[at(x, y)] = (count[at(x, y)] ?? 0) + 1;
    return count;
  }
  const lengths = (found) => Object.fromEntries([...found].map(([id, lines]) =>
    [id, Array.from({ length: lines.length / 4 }, (_, k) => lines.slice(4 * k, 4 * k + 4))
      .reduce((sum, [x0, y0, x1, y1]) => sum + Math.abs(x1 - x0) + Math.abs(y1 - y0), 0)]));

  it("are outlined along the sides of their pixels", () => {
    const square = outlines([0, 0, 0, 0, 0, 7, 7, 0, 0, 7, 7, 0], 4, 3);
    expect([...square.keys()]).toEqual([7]);
    expect(square.get(7)).toEqual([1, 1, 3, 1, 1, 3, 3, 3, 1, 1, 1, 3, 3, 1, 3, 3]);
  });

  it("have borders as long as there are sides, also where instances touch", () => {
    let seed = 1;
    for (let round = 0; round < 20; round++) {
      const width = 3 + round, height = 9, ids = new Uint16Array(width * height);
      for (let i = 0; i < ids.length; i++) { seed = (seed * 16807) % 2147483647; ids[i] = Math.max(0, (seed % 5) - 1); }
      expect(lengths(outlines(ids, width, height))).toEqual(sides(ids, width, height));
    }
  });

  it("have their number inside, in the middle of the widest part", () => {
    const ids = [
      1, 0, 0, 2, 2,
      1, 1, 1, 0, 0,
      1, 0, 0, 3, 3,
      0, 0, 0, 3, 3,
    ];
    const found = anchors(ids, 5, 4), place = (id) => [found.get(id).x, found.get(id).y];
    expect([place(1), place(2), place(3)]).toEqual([[1.5, 1.5], [4, 0.5], [4, 3]]);
    expect(found.has(0)).toBe(false);
  });
});

describe("the status line", () => {
  const calm = { busy: "", silent: false, waiting: false, status: "2 points.", failed: false };
  const line = (state) => statusLine({ ...calm, ...state });

  it("says what takes time before what happened last", () => {
    expect(line({})).toEqual({ words: "2 points.", working: false, failed: false });
    expect(line({ busy: "Encoding", waiting: true })).toEqual({ words: "Encoding", working: true, failed: false });
    expect(line({ silent: true, waiting: true }).words).toMatch(/kernel/);
  });

  it("marks a failure once it is answered", () => {
    expect(line({ failed: true }).failed).toBe(true);
    expect(line({ failed: true, waiting: true })).toEqual({ words: "2 points.", working: true, failed: false });
  });
});
