"""One image, many prompts: features and knowledge are computed once, masks come back on the image's own grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ullsam.accel.upsampling import enlarge_masks
from ullsam.data.io import Square, to_rgb8
from ullsam.errors import InputError
from ullsam.model import ULLSAM
from ullsam.types import ImageFeatures, Prompts

CHUNK = 8  # objects decoded at a time: more take more memory and no less time


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
    """An encoded image: how it lies in the model's square, and what the encoder says of it."""

    square: Square
    features: ImageFeatures


def prompts_on(square: Square, given: dict[str, np.ndarray], device: torch.device) -> Prompts:
    """Prompts of I objects in image pixels -> those of one image in pixels of the square."""
    moved = {"points": square.points_in, "boxes": square.boxes_in}
    values = {k: moved[k](v) if k in moved else v for k, v in given.items()}
    return Prompts(**{k: torch.as_tensor(v, dtype=torch.float32, device=device)[None] for k, v in values.items()})


class Predictor:
    """Segments and describes one image at a time; points and boxes are (x, y) in pixels of the image as given.

    `Predictor(model)` is of the class that suits the model's SAM, as `pathlib.Path` is of the class that suits the system.

    Args:
        model: a model; precision: "no" encodes images as the weights are, "bf16" with bfloat16 autocast, which is faster on
            processors that know it and for large models. Masks are decoded in float32 either way.
    """

    def __new__(cls, model: ULLSAM, *_, **__):
        suitable = getattr(getattr(model, "sam", None), "predictor_class", None)
        return super().__new__(suitable if cls is Predictor and suitable else cls)

    def __init__(self, model: ULLSAM, precision: str = "no"):
        if precision not in ("no", "bf16"):
            raise InputError(f"There is no precision {precision!r}; choose 'no' or 'bf16'.")
        self.model, self.precision = model.eval(), precision
        self.view: View | None = None  # the image that was set
        self._knowledge: Tensor | None = None

    @torch.inference_mode()
    def set_image(self, image: np.ndarray) -> None:
        """Encodes an image: (H, W) or (H, W, 1-5 channels), uint8, uint16, bool or float, any size.

        Raises:
            InputError: not an image, NaN, or too small, with what to do.
        """
        self.view, self._knowledge = self.encode(to_rgb8(image)), None

    def encode(self, image: np.ndarray, side: int | None = None) -> View:
        """The features of a uint8 RGB image (H, W, 3), seen in a square of `side` pixels (None: the model's own)."""
        pixels, (square,) = self.model.preprocess([image], side)
        with self._autocast():
            return View(square, self.model.encode(pixels).float())

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image that was set."""
        square = self._ready().square
        return square.height, square.width

    @torch.inference_mode()
    def knowledge(self) -> Tensor | None:
        """Vision-language knowledge of the image, (1, ...), computed at its first use; None without a VLSA."""
        if self._knowledge is None and self.model.vlsa is not None:
            with self._autocast():
                self._knowledge = self.model.knowledge(self._ready().features).float()
        return self._knowledge

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
        given = self.check_prompts(points, labels, box, mask)
        knowledge = self.knowledge() if use_vlk else None
        candidates = slice(1, None) if multimask else slice(0, 1)
        starts = range(0, len(next(iter(given.values()))), CHUNK)
        chunks = [{k: v[i : i + CHUNK] for k, v in given.items()} for i in starts]
        found = zip(*(self.decode(chunk, knowledge, candidates) for chunk in chunks), strict=True)
        masks, scores, logits = (np.concatenate(parts) for parts in found)
        return Prediction(*(x if multimask else x[:, 0] for x in (masks, scores, logits)))

    def decode(self, given: dict[str, np.ndarray], knowledge: Tensor | None, candidates: slice) -> tuple[np.ndarray, ...]:
        """Masks (I, K, H, W), scores (I, K) and logits (I, K, 4h, 4w) for checked prompts of I objects in image pixels.

        Args:
            given: "points" and "labels", "boxes" or "masks"; knowledge: (1, ...); candidates: which K of the four masks.
        """
        view = self._ready()
        logits, scores = self.segment(view, given, knowledge, candidates)
        masks = np.stack([enlarge_masks(x, view.square) for x in logits])
        return masks, scores.cpu().numpy(), logits.cpu().numpy()

    def segment(self, view: View, given: dict, knowledge: Tensor | None, candidates: slice) -> tuple[Tensor, Tensor]:
        """Logits (I, K, 4h, 4w) and scores (I, K) of the objects in one view; arguments as in `decode`."""
        prompts = prompts_on(view.square, given, self.model.device)
        logits, scores = self.model.segment(view.features, prompts, knowledge)
        return logits[0, :, candidates], scores[0, :, candidates]  # (1, I, 4, ...) -> (I, K, ...)

    def describe(self, question: str | None = None, max_new_tokens: int = 96, on_text=None) -> str:
        """Words about the image that was set, see `ULLSAM.describe`; `on_text` is called with the text while it grows."""
        features = self._ready().features
        with torch.inference_mode():
            tokens = self.model.image_tokens(features)
        return self.model.llm_or_raise().generate(tokens, question, max_new_tokens, on_text)[0]

    def check_prompts(self, points, labels, box, mask) -> dict[str, np.ndarray]:
        """The prompts of `predict` in image pixels, each with I as its first axis; what is wrong is said in one sentence."""
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

    def _autocast(self):
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _ready(self) -> View:
        if self.view is None:
            raise InputError("No image is set; call set_image(array) first.")
        return self.view


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
