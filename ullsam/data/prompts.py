"""Prompts as people give them: checked in pixels of the image, then brought to the model's square."""

from __future__ import annotations

import numpy as np
import torch

from ullsam.data.io import Square
from ullsam.errors import InputError, reason
from ullsam.types import Prompts


def check_prompts(points, labels, box, mask, size: tuple[int, int], side: int) -> dict[str, np.ndarray]:
    """The prompts of one or of I objects, each with I as its first axis, under the names of `Prompts`, in image pixels.

    Args:
        points, labels, box, mask: as in `Predictor.predict`, each may be None.
        size: (H, W) of the image; side: of low-resolution mask logits.

    Raises:
        InputError: no prompt, or prompts of wrong shape, outside the image, without labels, or for different numbers of
            objects.
    """
    if all(x is None for x in (points, labels, box, mask)):
        raise InputError("There is no prompt; give points with labels, a box, or a mask.")
    if (points is None) != (labels is None):
        raise InputError("Points need labels of the same length: 1 for inside, 0 for outside.")
    given = {}
    if points is not None:
        given["points"], given["labels"] = _check_points(points, labels, size)
    if box is not None:
        given["boxes"] = _check_boxes(box, size)
    if mask is not None:
        masks = _numbers(mask, "mask logits", side)
        given["masks"] = masks = masks[None] if masks.ndim == 2 else masks
        if masks.shape[1:] != (side, side):
            raise InputError(f"Mask prompts have shape {masks.shape}; give the (I, {side}, {side}) logits of a Prediction.")
    counts = {len(v) for v in given.values()}
    if len(counts) > 1:
        raise InputError(f"Points, boxes and masks are for different numbers of objects: {sorted(counts)}.")
    return given


def prompts_on(square: Square, given: dict[str, np.ndarray], device: torch.device) -> Prompts:
    """Prompts of I objects in image pixels -> those of one image in pixels of the square."""
    moved = {"points": square.points_in, "boxes": square.boxes_in}
    values = {k: moved[k](v) if k in moved else v for k, v in given.items()}
    return Prompts(**{k: torch.as_tensor(v, dtype=torch.float32, device=device)[None] for k, v in values.items()})


def _numbers(values, name: str, last: int | None = None) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"The {name} are not numbers ({reason(error)}); give an array of real numbers.") from error
    if array.dtype.kind not in "buif":  # numpy would take the real part of complex numbers
        raise InputError(f"The {name} are not numbers on the real axis ({array.dtype}); give an array of real numbers.")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which is refused below
        array = array.astype(np.float32)
    if array.size == 0 or array.shape[-1:] != (last,) and last is not None or not np.isfinite(array).all():
        raise InputError(f"The {name} have shape {array.shape}; give finite numbers with a last axis of {last or 'P'}.")
    return array


def _check_points(points, labels, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    points, labels = _numbers(points, "points", 2), _numbers(labels, "labels")
    if points.ndim == 2:
        points, labels = points[None], labels[None]  # (P, 2) -> (1, P, 2)
    if points.ndim != 3 or labels.shape != points.shape[:2]:
        raise InputError(f"Points {points.shape} and labels {labels.shape} do not match; give (I, P, 2) and (I, P).")
    if not np.isin(labels, (0, 1)).all():
        raise InputError("Labels must be 1 (inside) or 0 (outside).")
    h, w = size
    outside = (points < -0.5) | (points > np.array([w - 0.5, h - 0.5]))  # a pixel reaches half a pixel around its centre
    if outside.any():
        x, y = points[outside.any(-1)][0]
        raise InputError(f"The point ({x:g}, {y:g}) lies outside the image of {w} x {h} pixels; points are (x, y).")
    return points, labels


def _check_boxes(box, size: tuple[int, int]) -> np.ndarray:
    boxes = np.atleast_2d(_numbers(box, "boxes", 4))
    h, w = size
    low, high = boxes[:, :2], boxes[:, 2:]
    if boxes.ndim != 2 or (low >= high).any() or (high < 0).any() or (low > [w - 1, h - 1]).any():
        raise InputError(f"A box is x0, y0, x1, y1 with x0 < x1 and y0 < y1 and touches the image of {w} x {h} pixels.")
    return boxes.clip(0, [w - 1, h - 1, w - 1, h - 1])
