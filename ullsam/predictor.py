"""One image, many prompts: features and knowledge are computed once, masks come back on the image's own grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ullsam.accel.upsampling import enlarge_masks
from ullsam.data.io import Square, to_rgb8
from ullsam.data.prompts import check_prompts, prompts_on
from ullsam.errors import InputError
from ullsam.llm import ImageMemory
from ullsam.losses import presence_logit
from ullsam.model import ULLSAM
from ullsam.types import ImageFeatures

CHUNK = 8  # objects decoded at a time: more take more memory and no less time


@dataclass(frozen=True)
class Prediction:
    """Masks of I objects: masks bool (I, H, W), scores float32 (I,) as estimated by the model, logits (I, 4h, 4w).

    With `multimask` each has a second axis of 3 candidates. presence, float32 (I,), says how sure the model is that what the
    words name is there, 0 to 1; None without words.
    """

    masks: np.ndarray
    scores: np.ndarray
    logits: np.ndarray
    presence: np.ndarray | None = None


@dataclass(frozen=True)
class View:
    """An encoded image: how it lies in the model's square, and what the encoder says of it."""

    square: Square
    features: ImageFeatures


class Predictor:
    """Segments and describes one image at a time; points and boxes are (x, y) in pixels of the image as given.

    `Predictor(model)` is of the class that suits the model's SAM, as `pathlib.Path` is of the class that suits the system.

    Args:
        model: a model; precision: "no" encodes images as the weights are, "bf16" with bfloat16 autocast, which is faster on
            processors that know it and for large models. Masks are decoded in float32 either way.
    """

    def __new__(cls, model: ULLSAM | None = None, *_, **__):
        suitable = getattr(getattr(model, "sam", None), "predictor_class", None)
        return super().__new__(suitable if cls is Predictor and suitable else cls)

    def __init__(self, model: ULLSAM, precision: str = "no"):
        if precision not in ("no", "bf16"):
            raise InputError(f"There is no precision {precision!r}; choose 'no' or 'bf16'.")
        self.model, self.precision = model.eval(), precision
        self.view: View | None = None  # the image that was set
        self._knowledge: dict[str | None, Tensor | None] = {}  # by words
        self._memory: ImageMemory | None = None

    @torch.inference_mode()
    def set_image(self, image: np.ndarray) -> None:
        """Encodes an image: (H, W) or (H, W, 1-5 channels), uint8, uint16, bool or float, any size.

        Raises:
            InputError: not an image, NaN, or too small, with what to do.
        """
        self._begin(self.encode(to_rgb8(image)))

    def _begin(self, view: View) -> None:
        """Puts an encoded image in the place of the last one and forgets what was known of that."""
        self.view, self._knowledge, self._memory = view, {}, None

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
    def knowledge(self, words: str | None = None) -> Tensor | None:
        """Vision-language knowledge of the image and the words, (1, ...), computed at first use; None without a VLSA."""
        if words is not None and not isinstance(words, str):
            raise InputError(f"words must be one text, such as 'nuclei'; not {words!r:.80}.")
        if words not in self._knowledge:
            features = self._ready().features
            with self._autocast():
                self._memory = self._memory or self.model.remember(features)
                found = self.model.knowledge(features, words, self._memory)
            self._knowledge[words] = None if found is None else found.float()
        return self._knowledge[words]

    @torch.inference_mode()
    def predict(
        self,
        points=None,
        labels=None,
        box=None,
        mask=None,
        use_vlk: bool = True,
        multimask: bool = False,
        words: str | None = None,
    ) -> Prediction:
        """Masks for the prompts of one object or of I objects.

        Args:
            points: (P, 2) or (I, P, 2), x and y in image pixels; labels: (P,) or (I, P), 1 inside and 0 outside.
            box: (4,) or (I, 4) as x0, y0, x1, y1.
            mask: (4h, 4w) or (I, 4h, 4w) logits of an earlier prediction to correct.
            use_vlk: with or without vision-language knowledge; a model without VLSA ignores it.
            multimask: return SAM's three candidates for each object instead of one mask.
            words: what the clicks or boxes mean, such as "mitochondrion"; None: they stand for themselves.

        Raises:
            InputError: no image set, no prompt, or prompts of wrong shape, outside the image or without labels; words
                without knowledge or with a mask, in whose place knowledge would stand.
        """
        given = self.check_prompts(points, labels, box, mask)
        if words is not None and (mask is not None or not use_vlk):
            raise InputError("words need knowledge, which a mask prompt or use_vlk=False leaves out; give only one of them.")
        asked = () if words is None else (words,)
        return self._decode_all(given, self.knowledge(*asked) if use_vlk else None, multimask, words)

    @torch.inference_mode()
    def segment(self, words: str) -> Prediction:
        """One mask of all that the words name, such as "nuclei", without a click; arguments and errors as in `predict`."""
        nothing = {"points": np.zeros((1, 1, 2)), "labels": np.full((1, 1), -1)}  # SAM's point that is none
        return self._decode_all(nothing, self.knowledge(words), False, words)

    def _decode_all(self, given: dict[str, np.ndarray], knowledge: Tensor | None, multimask: bool, words) -> Prediction:
        """`decode` of a few objects at a time, put together."""
        candidates = slice(1, None) if multimask else slice(0, 1)
        starts = range(0, len(next(iter(given.values()))), CHUNK)
        chunks = [{k: v[i : i + CHUNK] for k, v in given.items()} for i in starts]
        found = zip(*(self.decode(chunk, knowledge, candidates) for chunk in chunks), strict=True)
        masks, scores, logits = (np.concatenate(parts) for parts in found)
        presence = None if words is None else presence_logit(torch.from_numpy(logits[:, 0])).sigmoid().numpy()
        return Prediction(*(x if multimask else x[:, 0] for x in (masks, scores, logits)), presence)

    def decode(self, given: dict[str, np.ndarray], knowledge: Tensor | None, candidates: slice) -> tuple[np.ndarray, ...]:
        """Masks (I, K, H, W), scores (I, K) and logits (I, K, 4h, 4w) for checked prompts of I objects in image pixels.

        Args:
            given: "points" and "labels", "boxes" or "masks"; knowledge: (1, ...); candidates: which K of the four masks.
        """
        view = self._ready()
        logits, scores = self.decode_view(view, given, knowledge, candidates)
        masks = np.stack([enlarge_masks(x, view.square) for x in logits])
        return masks, scores.cpu().numpy(), logits.cpu().numpy()

    def decode_view(self, view: View, given: dict, knowledge: Tensor | None, candidates: slice) -> tuple[Tensor, Tensor]:
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
        side = 0 if mask is None else 4 * self.model.config.sam.grid
        return check_prompts(points, labels, box, mask, self.size, side)

    def _autocast(self):
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _ready(self) -> View:
        if self.view is None:
            raise InputError("No image is set; call set_image(array) first.")
        return self.view
