"""Instances drawn into an image: a colour for each id, tints and outlines."""

from __future__ import annotations

from collections import defaultdict

import cv2
import numpy as np

from ullsam.data.io import to_rgb8
from ullsam.errors import InputError

# colour-blind-friendly (after Okabe and Ito, and Tol); yellow and its like are kept for the truth
COLOURS = "56b4e9 d55e00 009e73 cc79a7 0072b2 ffaabb aa4499 78dcbe"
PALETTE = np.frombuffer(bytes.fromhex(COLOURS), dtype=np.uint8).reshape(-1, 3)
DARK = [f"#{COLOURS.split()[i]}" for i in (4, 1, 2, 6, 0, 3, 7, 5)]  # the dark ones first, for lines and bars on white
YELLOW = (255, 225, 25)
INSIDE, OUTSIDE = "#1a9850", "#d7191c"  # points


def instance_colours(labels: np.ndarray) -> dict[int, tuple[int, int, int]]:
    """A colour (red, green, blue, 0..255) for each id of a label map, integer (H, W), 0 background.

    The id chooses it; where a lower id within 3 pixels has that colour, the next one is taken.
    """
    near, chosen, (h, w) = defaultdict(set), {}, labels.shape
    for dy, dx in ((0, 1), (1, 0), (0, 3), (3, 0), (3, 3), (3, -3)):
        a = labels[: h - dy, max(0, -dx) : w - max(0, dx)]
        b = labels[dy:, max(0, dx) : w + min(0, dx)]
        meet = (a != b) & (a != 0) & (b != 0)
        for i, j in np.unique(np.stack([a[meet], b[meet]], axis=1), axis=0).tolist():
            near[i].add(j)
            near[j].add(i)
    for i in (int(x) for x in np.unique(labels) if x):
        taken = {chosen.get(j) for j in near[i]}
        order = [(i - 1 + step) % len(PALETTE) for step in range(len(PALETTE))]
        chosen[i] = next((k for k in order if k not in taken), order[0])
    return {i: tuple(int(v) for v in PALETTE[k]) for i, k in chosen.items()}


def overlay(image: np.ndarray, labels: np.ndarray, alpha: float = 0.45) -> np.ndarray:
    """The image, uint8 (H, W, 3), with its instances tinted and outlined, and unchanged outside of them.

    Args:
        image: (H, W) or (H, W, C).
        labels: integer (H, W), 0 background; or masks bool (H, W) or (I, H, W), whose ids are then 1..I.
        alpha: opacity of the tint, 0..1.

    Raises:
        InputError: the labels are no label map or masks of the image's size.
    """
    out = to_rgb8(image).copy()
    labels = _as_labels(labels, out.shape[:2])
    colours = instance_colours(labels)
    ids = np.array(sorted({0, *colours}))
    paint = np.array([colours.get(int(i), (0, 0, 0)) for i in ids])[np.searchsorted(ids, labels)]  # (H, W, 3)
    inside, edge = labels != 0, _borders(labels) & (labels != 0)
    out[inside] = np.round((1 - alpha) * out[inside] + alpha * paint[inside])
    out[edge] = paint[edge]
    return out


def outline(image: np.ndarray, labels: np.ndarray, colour: tuple[int, int, int] = YELLOW) -> np.ndarray:
    """The image, uint8 (H, W, 3), with the border of each instance in one colour; arguments as for `overlay`."""
    out = to_rgb8(image).copy()
    out[_borders(_as_labels(labels, out.shape[:2]))] = colour
    return out


def _borders(labels: np.ndarray) -> np.ndarray:
    """Pixels near another label, on both sides, bool (H, W); wide enough to be seen in a panel."""
    radius = max(1, round(max(labels.shape) / 300))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    values = labels.astype(np.float64)  # OpenCV's morphology has no int32
    return cv2.erode(values, kernel) != cv2.dilate(values, kernel)


def _as_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map (H, W); of overlapping masks the smaller lies on top."""
    labels = np.asarray(labels)
    if labels.shape[-2:] != tuple(size) or labels.ndim not in (2, 3) or labels.dtype.kind not in "biu":
        raise InputError(
            f"The masks are {labels.dtype} {labels.shape} and the image is {tuple(size)}; give a label "
            "map (H, W) or bool masks (I, H, W) of the image's size."
        )
    if labels.ndim == 2:
        return labels.astype(np.int64)
    merged = np.zeros(size, dtype=np.int64)
    for i in np.argsort(-np.count_nonzero(labels, axis=(1, 2)), kind="stable"):
        merged[labels[i] != 0] = i + 1
    return merged
