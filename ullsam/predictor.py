"""One image, many prompts: features and knowledge are computed once, masks come back on the image's own grid.

A model with several scales sees the image small as well. An object is drawn from the middle view first; if it is wide there,
again from the next smaller view, whose features span more of it; if it is narrow, from the next larger one, for detail.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ullsam.accel.upsampling import enlarge_masks
from ullsam.data.io import Square, to_rgb8
from ullsam.errors import InputError
from ullsam.model import ULLSAM
from ullsam.sam import ImageFeatures, Prompts

CHUNK = 8  # objects decoded at a time: more take more memory and no less time
NARROW, WIDE = 0.2, 0.55  # up to and beyond these shares of the middle view's side another view draws the object


@dataclass(frozen=True)
class Prediction:
    """Masks of I objects: masks bool (I, H, W), scores float32 (I,) as estimated by the model, logits (I, 4h, 4w).

    With `multimask` each has a second axis of 3 candidates.
    """

    masks: np.ndarray
    scores: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class View:
    """The image at one scale: where it lies in its square, and what the encoder says of it."""

    model: ULLSAM
    square: Square
    features: ImageFeatures
    precision: str

    @cached_property
    def knowledge(self) -> Tensor | None:
        """Vision-language knowledge, (1, ...), computed at its first use; None without a VLSA."""
        with autocast(self.model, self.precision):
            knowledge = self.model.knowledge(self.features)
        return None if knowledge is None else knowledge.float()

    def segment(self, given: dict[str, np.ndarray], use_vlk: bool, kinds: slice) -> tuple[Tensor, Tensor]:
        """Logits (I, kinds, 4h, 4w) and scores (I, kinds) for prompts of I objects in image pixels."""
        prompts = prompts_on(self.square, given, self.model.device)
        logits, scores = self.model.segment(self.features, prompts, self.knowledge if use_vlk else None)
        return logits[0, :, kinds], scores[0, :, kinds]  # (1, I, 4, ...) -> (I, kinds, ...)


def prompts_on(square: Square, given: dict[str, np.ndarray], device: torch.device) -> Prompts:
    """Prompts of I objects in image pixels -> those of one image in pixels of the square."""
    moved = {"points": square.points_in, "boxes": square.boxes_in}
    values = {k: moved[k](v) if k in moved else v for k, v in given.items()}
    return Prompts(**{k: torch.as_tensor(v, dtype=torch.float32, device=device)[None] for k, v in values.items()})


def widths(logits: Tensor) -> np.ndarray:
    """Longer side of each mask of logits (I, n, n), as a share of n: (I,)."""
    inside = logits > 0
    sides = [_span(inside.any(axis)) for axis in (1, 2)]
    return (torch.maximum(*sides) / logits.shape[-1]).cpu().numpy()


def _span(taken: Tensor) -> Tensor:
    """From the first to the last place that is taken, of (I, n) places: (I,), 0 where none is."""
    places = torch.arange(1, taken.shape[1] + 1, device=taken.device)
    last = (taken * places).amax(1)
    first = (taken * places.flip(0)).amax(1)
    return (last + first - taken.shape[1]).clamp(min=0)


def autocast(model: ULLSAM, precision: str):
    """bfloat16 autocast on the model's device for the precision "bf16"."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16")


class Predictor:
    """Segments and describes one image at a time; points and boxes are (x, y) in pixels of the image as given.

    Args:
        model: a model; precision: "no" encodes images as the weights are, "bf16" with bfloat16 autocast, which is faster on
            processors that know it and for large models. Masks are decoded in float32 either way.
    """

    def __init__(self, model: ULLSAM, precision: str = "no"):
        if precision not in ("no", "bf16"):
            raise InputError(f"There is no precision {precision!r}; choose 'no' or 'bf16'.")
        self.model, self.precision = model.eval(), precision
        self._views: tuple[View, ...] = ()  # from the smallest to the whole canvas

    @torch.inference_mode()
    def set_image(self, image: np.ndarray) -> None:
        """Encodes an image: (H, W) or (H, W, 1-5 channels), uint8, uint16, bool or float, any size.

        Raises:
            InputError: not an image, NaN, or too small, with what to do.
        """
        sam, image = self.model.config.sam, to_rgb8(image)
        self._views = tuple(self._view(image, round(sam.image_size * scale)) for scale in sorted(sam.scales))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image that was set."""
        square = self._ready()[-1].square
        return square.height, square.width

    @torch.inference_mode()
    def knowledge(self) -> Tensor | None:
        """Vision-language knowledge of the image, (1, ...); computed at its first use, also that of smaller views. None
        without a VLSA."""
        return [view.knowledge for view in self._ready()][-1]

    @torch.inference_mode()
    def predict(
        self, points=None, labels=None, box=None, mask=None, use_vlk: bool = True, multimask: bool = False
    ) -> Prediction:
        """Masks for the prompts of one object or of I objects.

        Args:
            points: (P, 2) or (I, P, 2), x and y in image pixels; labels: (P,) or (I, P), 1 inside and 0 outside.
            box: (4,) or (I, 4) as x0, y0, x1, y1.
            mask: (4h, 4w) or (I, 4h, 4w) logits of an earlier prediction to correct.
            use_vlk: with or without vision-language knowledge; a model without VLSA ignores it.
            multimask: return SAM's three candidates for each object instead of one mask.

        Raises:
            InputError: no image set, no prompt, or prompts of wrong shape, outside the image or without labels.
        """
        given = self._given(points, labels, box, mask)
        views = self._ready()[-1:] if "masks" in given else self._views  # mask prompts are of the whole canvas
        kinds = slice(1, None) if multimask else slice(0, 1)
        chunks = _chunks(given)
        masks, scores, logits = (
            np.concatenate(x) for x in zip(*(self._decode(c, views, use_vlk, kinds) for c in chunks), strict=True)
        )
        return Prediction(*(x if multimask else x[:, 0] for x in (masks, scores, logits)))

    def describe(self, question: str | None = None, max_new_tokens: int = 96, on_text=None) -> str:
        """Words about the image that was set, see `ULLSAM.describe`; `on_text` is called with the text while it grows."""
        features = self._ready()[-1].features
        with torch.inference_mode():
            tokens = self.model.image_tokens(features)
        return self.model.llm_or_raise().generate(tokens, question, max_new_tokens, on_text)[0]

    def _view(self, image: np.ndarray, side: int) -> View:
        pixels, (square,) = self.model.preprocess([image], side)
        with autocast(self.model, self.precision):
            features = self.model.encode(pixels).float()
        return View(self.model, square, features, self.precision)

    def _decode(self, given: dict[str, np.ndarray], views: tuple[View, ...], use_vlk: bool, kinds: slice):
        """Masks (I, kinds, H, W), scores (I, kinds) and logits (I, kinds, 4h, 4w), of each object from the view that suits
        its width in the middle one."""
        middle = (len(views) - 1) // 2
        logits, scores = views[middle].segment(given, use_vlk, kinds)
        width = widths(logits[:, 0])
        choice = np.clip(middle + (width <= NARROW) - (width > WIDE), 0, len(views) - 1)
        drawn = list(zip(logits, scores, strict=True))
        for n in set(choice) - {middle}:
            which = np.flatnonzero(choice == n)
            again = views[n].segment({k: v[which] for k, v in given.items()}, use_vlk, kinds)
            for i, *result in zip(which, *again, strict=True):
                drawn[i] = result
        finished = (self._finish(views[n], *x) for n, x in zip(choice, drawn, strict=True))
        return tuple(np.stack(x) for x in zip(*finished, strict=True))

    def _finish(self, view: View, logits: Tensor, scores: Tensor) -> tuple[np.ndarray, ...]:
        """Masks (kinds, H, W), scores (kinds,) and logits (kinds, 4h, 4w) on the whole canvas of one object."""
        return enlarge_masks(logits, view.square), scores.cpu().numpy(), self._on_canvas(logits)

    def _on_canvas(self, logits: Tensor) -> np.ndarray:
        """Logits (kinds, n, n) of any view at the resolution of the whole canvas."""
        side = 4 * self.model.config.sam.grid
        if logits.shape[-1] != side:
            logits = F.interpolate(logits[None], (side, side), mode="bilinear", align_corners=False)[0]
        return logits.cpu().numpy()

    def _ready(self) -> tuple[View, ...]:
        if not self._views:
            raise InputError("No image is set; call set_image(array) first.")
        return self._views

    def _given(self, points, labels, box, mask) -> dict[str, np.ndarray]:
        """The prompts checked, each with I as its first axis, in image pixels."""
        if all(x is None for x in (points, labels, box, mask)):
            raise InputError("There is no prompt; give points with labels, a box, or a mask.")
        if (points is None) != (labels is None):
            raise InputError("Points need labels of the same length: 1 for inside, 0 for outside.")
        given = {}
        if points is not None:
            given["points"], given["labels"] = _check_points(points, labels, self.size)
        if box is not None:
            given["boxes"] = _check_boxes(box, self.size)
        if mask is not None:
            given["masks"] = _check_masks(mask, 4 * self.model.config.sam.grid)
        counts = {len(v) for v in given.values()}
        if len(counts) > 1:
            raise InputError(f"Points, boxes and masks are for different numbers of objects: {sorted(counts)}.")
        return given


def _chunks(given: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    starts = range(0, len(next(iter(given.values()))), CHUNK)
    return [{k: v[i : i + CHUNK] for k, v in given.items()} for i in starts]


def _numbers(values, name: str, last: int) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"The {name} are not numbers ({error}).") from error
    if array.size == 0 or array.shape[-1] != last or not np.isfinite(array).all():
        raise InputError(f"The {name} have shape {array.shape}; give finite numbers with a last axis of {last}.")
    return array


def _check_points(points, labels, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    points, labels = _numbers(points, "points", 2), np.asarray(labels)
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


def _check_masks(mask, side: int) -> np.ndarray:
    masks = _numbers(mask, "mask logits", side)
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.shape[1:] != (side, side):
        raise InputError(f"Mask prompts have shape {masks.shape}; give the (I, {side}, {side}) logits of a Prediction.")
    return masks
