"""Masks on the image's own grid, computed only where an object is: the time depends on the object, not on the image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ullsam.data.io import Square

ROWS = 32  # image rows computed at a time, so that they stay in the processor's cache


def enlarge_masks(logits: Tensor, square: Square) -> np.ndarray:
    """Where `data.io.from_square` of the logits is above 0, without computing the rest.

    Between positions whose logits are all negative, bilinear interpolation is negative; so the rows and columns that a
    positive position reaches hold the whole mask.

    Args:
        logits: float (K, h, w) of K masks over the whole model square.
        square: how the image lies in it.

    Returns:
        bool (K, H, W).
    """
    logits = logits.float().cpu()
    (x0, y0), (h, w) = square.offset, logits.shape[1:]
    rows, columns = _neighbours(h, square.side, y0, square.height), _neighbours(w, square.side, x0, square.width)
    masks = np.zeros((len(logits), square.height, square.width), bool)
    for mask, values in zip(masks, logits, strict=True):
        inside = values > 0
        ys, xs = _reach(inside.any(1), rows), _reach(inside.any(0), columns)
        if ys.start < ys.stop and xs.start < xs.stop:
            _fill(mask[ys, xs], values, [part[ys] for part in rows], [part[xs] for part in columns])
    return masks


def _neighbours(count: int, side: int, first: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """For `size` pixels of an axis from pixel `first`: the positions before and after each, and the weight of the latter.

    The convention of torch's bilinear interpolation without aligned corners: `count` positions share `side` pixels.
    """
    centre = (torch.arange(first, first + size) + 0.5) * (count / side) - 0.5
    centre = centre.clamp(0, count - 1)
    before = centre.long()
    return before, (before + 1).clamp(max=count - 1), centre - before


def _reach(positive: Tensor, axis: tuple[Tensor, Tensor, Tensor]) -> slice:
    """The pixels from the first to the last that has a positive position beside it; an empty slice if there is none."""
    before, after, _ = axis
    pixels = (positive[before] | positive[after]).nonzero()
    return slice(int(pixels[0]), int(pixels[-1]) + 1) if len(pixels) else slice(0, 0)


def _fill(mask: np.ndarray, values: Tensor, rows: list[Tensor], columns: list[Tensor]) -> None:
    """Interpolates values (h, w) to the pixels of `mask`, a view (H', W') of the result, and compares them with 0."""
    top = int(rows[0][0])
    values = values[top : int(rows[1][-1]) + 1]
    wide = torch.lerp(values[:, columns[0]], values[:, columns[1]], columns[2])  # (h', W')
    out = torch.from_numpy(mask)
    for i in range(0, len(out), ROWS):
        before, after, weight = (part[i : i + ROWS] for part in rows)
        torch.gt(torch.lerp(wide[before - top], wide[after - top], weight[:, None]), 0, out=out[i : i + ROWS])
