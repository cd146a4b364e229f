"""Training views for segmentation by words: a crop of an image in which things can be named, clicks or none, and words.

Letters: S view side in pixels, I objects of one image. Everything random comes from one generator.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from ullsam.data.augment import ViewConfig, choose_crop, jitter, place_crop
from ullsam.data.referring import NamedScene, Referral, draw_absent, draw_ambiguous, draw_union

TASKS = {"click": 0.6, "words": 0.25, "absent": 0.15}  # fractions of the views: an ambiguous click, no click, nothing there
SIDES = ("left ", "right ")  # of words that a mirrored or cropped image would make untrue


def word_view(scene: NamedScene, rng: np.random.Generator, view: int, canvas: int, most: int) -> dict | None:
    """One view with words that fit it; None where the scene has nothing of the kind that was drawn first.

    Args:
        scene: image and structures; rng: source of all draws.
        view: side S in pixels; canvas: side at which the model sees a whole image.
        most: I, the number of objects, each with words of its own; spare rows repeat the first with valid 0.

    Returns:
        image: uint8 (S, S, 3); valid_mask: bool (S, S); words: I texts; points (I, 1, 2) float32, (x, y) in pixels of the
        view, with point_labels (I, 1): 1, or -1 without a click; truth: bool (I, S, S); valid: float32 (I,).
    """
    first = _draw(scene, rng)
    if first is None:
        return None
    asked = [first, *(x for _ in range(most - 1) if (x := _draw(scene, rng)) is not None)]
    fixed = first.key.startswith(SIDES)
    crop = (0, 0, max(scene.image.shape[:2])) if fixed else _crop(scene, first, rng, view, canvas)
    spots = [_move(x.point, crop, view) for x in asked]
    kept = [i for i, x in enumerate(asked) if _fits(spots[i], view) and (fixed or not x.key.startswith(SIDES))]
    image, inside = _cut(scene.image, crop, view), _cut(np.ones(scene.image.shape[:2], np.uint8), crop, view)
    tone = any("dark" in asked[i].words or asked[i].key.startswith(("bright ", "dark ")) for i in kept)
    changed = jitter(image, rng, replace(ViewConfig(), invert=0) if tone else ViewConfig())  # words must stay true
    image = np.where(inside[..., None] > 0, changed, 0).astype(np.uint8)
    rows = [kept[i % len(kept)] for i in range(most)]
    truth = np.stack([_cut(asked[i].mask.astype(np.uint8), crop, view) > 0 for i in rows])
    points = np.array([[(0, 0) if spots[i] is None else spots[i]] for i in rows], np.float32)
    if not fixed:
        image, inside, truth, points = _flip(image, inside, truth, points, rng.integers(0, 2, 3))
    labels = np.array([[-1 if spots[i] is None else 1] for i in rows], np.float32)
    prompts = {"words": [asked[i].words for i in rows], "points": points, "point_labels": labels}
    valid = (np.arange(most) < len(kept)).astype(np.float32)
    return prompts | {"image": image, "valid_mask": inside > 0, "truth": truth, "valid": valid}


def _draw(scene: NamedScene, rng: np.random.Generator) -> Referral | None:
    task = str(rng.choice(list(TASKS), p=list(TASKS.values())))
    if task == "absent":
        return draw_absent(scene, rng, click=bool(rng.integers(2)))
    return (draw_ambiguous if task == "click" else draw_union)(scene, rng)


def _fits(spot: np.ndarray | None, view: int) -> bool:
    return spot is None or bool(-0.5 <= spot.min() and spot.max() < view - 0.5)


def _crop(scene: NamedScene, asked: Referral, rng: np.random.Generator, view: int, canvas: int) -> tuple[int, int, int]:
    """The whole image, or a square around what is meant: at the scale of the whole image, or at a random one."""
    longest, chance = max(scene.image.shape[:2]), rng.random()
    if chance < 0.3:
        return 0, 0, longest
    labels = asked.mask.astype(np.int32)
    if asked.point is None and asked.mask.any():  # one of many
        parts = cv2.connectedComponents(asked.mask.astype(np.uint8))[1]
        labels = (parts == rng.integers(1, parts.max() + 1)).astype(np.int32)
    elif not asked.mask.any():
        labels = np.zeros(labels.shape, np.int32)
        x, y = asked.point or (rng.integers(labels.shape[1]), rng.integers(labels.shape[0]))
        labels[int(y), int(x)] = 1
    if chance < 0.7 or not asked.mask.any():
        return place_crop(labels, 1, round(longest * view / canvas), rng)
    return choose_crop(labels, 1, rng)


def _cut(array: np.ndarray, crop: tuple[int, int, int], view: int) -> np.ndarray:
    """The crop at the view's scale, zeros where it reaches beyond the image."""
    x0, y0, side = crop
    part = array[y0 : y0 + side, x0 : x0 + side]
    below, right = side - part.shape[0], side - part.shape[1]
    part = cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_CONSTANT)
    method = cv2.INTER_NEAREST_EXACT if array.ndim == 2 else cv2.INTER_AREA if view < side else cv2.INTER_LINEAR
    return cv2.resize(part, (view, view), interpolation=method)


def _move(point: tuple[float, float] | None, crop: tuple[int, int, int], view: int) -> np.ndarray | None:
    if point is None:
        return None
    x0, y0, side = crop
    return (np.array(point) - (x0, y0) + 0.5) * view / side - 0.5  # pixel centres are whole numbers


def _flip(image, inside, truth, points, flips):
    """One of the eight flips and quarter turns of a square: mirrored in x, in y, and transposed."""
    last = image.shape[0] - 1
    if flips[0]:
        image, inside, truth = image[:, ::-1], inside[:, ::-1], truth[:, :, ::-1]
        points[..., 0] = last - points[..., 0]
    if flips[1]:
        image, inside, truth = image[::-1], inside[::-1], truth[:, ::-1]
        points[..., 1] = last - points[..., 1]
    if flips[2]:
        image, inside, truth = image.transpose(1, 0, 2), inside.T, truth.transpose(0, 2, 1)
        points = points[..., ::-1]
    return tuple(np.ascontiguousarray(x) for x in (image, inside, truth, points))
