import { expect, test } from "vitest";
import { pieces, refusal } from "../../ullsam/widgets/files.js";

const suffixes = [".png", ".tif"];

test("a file that cannot be sent gets a sentence", () => {
  expect(refusal({ name: "a.PNG", size: 1 }, suffixes, 50)).toBe("");
  expect(refusal({ name: "a.png", size: 50e6 }, suffixes, 50)).toBe("");
  expect(refusal({ name: "a.gif", size: 1 }, suffixes, 50)).toContain("a.gif is not one of .png, .tif");
  expect(refusal({ name: "png", size: 1 }, suffixes, 50)).toContain("not one of");
  expect(refusal({ name: "a.tif", size: 0 }, suffixes, 50)).toContain("empty");
  expect(refusal({ name: "a.tif", size: 50e6 + 1 }, suffixes, 50)).toContain("50.0 MB and the limit is 50 MB");
});

test("pieces follow one another and cover the file", () => {
  expect(pieces(0, 4)).toEqual([]);
  expect(pieces(9, 4)).toEqual([[0, 4], [4, 8], [8, 9]]);
  expect(pieces(8, 4)).toEqual([[0, 4], [4, 8]]);
});
