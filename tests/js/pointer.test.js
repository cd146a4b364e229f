import { expect, test } from "vitest";
import { frame, makeSender, toImage } from "../../ullsam/widgets/pointer.js";

const rect = { left: 100, top: 50, width: 400, height: 200 }, size = [200, 100]; // two CSS pixels for one of the image

test("the middle of a pixel is a whole number, and the picture ends half a pixel outside", () => {
  expect(toImage({ x: 101, y: 51 }, rect, size)).toEqual([0, 0]);
  expect(toImage({ x: 499, y: 249 }, rect, size)).toEqual([199, 99]);
  expect(toImage({ x: 100, y: 50 }, rect, size)).toEqual([-0.5, -0.5]);
  const [x, y] = toImage({ x: 9999, y: 9999 }, rect, size);
  expect(x).toBeLessThan(199.5);
  expect([Math.round(x), Math.round(y)]).toEqual([199, 99]);
});

test("a frame lies around its cell in shares of the picture", () => {
  expect(frame([50, 25, 100, 100], size)).toEqual({ left: "25%", top: "25%", width: "25%", height: "75%" });
});

test("one hover is under way at a time, and only the newest waits", () => {
  const sent = [], sender = makeSender((message) => sent.push(message));
  for (const place of [1, 2, 3]) sender.hover(place);
  expect(sent).toEqual([1]);
  sender.answered();
  expect(sent).toEqual([1, 3]);
  sender.answered();
  sender.hover(4);
  expect(sent).toEqual([1, 3, 4]);
});

test("a click goes at once and ends what waited", () => {
  const sent = [], sender = makeSender((message) => sent.push(message));
  sender.hover("here");
  sender.hover("there");
  sender.click("click");
  sender.answered();
  expect(sent).toEqual(["here", "click"]);
});
