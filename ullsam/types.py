"""What passes between the parts of the model: prompts, image features, and what the language model makes of them.

Letters: B images, I objects (prompts) of one image, P points, C SAM width, D encoder or LLM width, N image tokens, T words'
tokens, h w feature grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Prompts(NamedTuple):
    """Prompts of I objects in each of B images, in pixels (x, y) of the model's square image.

    points (B, I, P, 2) float with labels (B, I, P): 1 inside, 0 outside, -1 unused; boxes (B, I, 4) as x0, y0, x1, y1;
    masks (B, I, 4h, 4w) logits. Each may be None, not all.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None

    def shifted(self, dx: int, dy: int) -> Prompts:
        """The same prompts of a window in the pixels of the whole image, where the window starts at (dx, dy)."""
        if not dx and not dy:
            return self
        points = None if self.points is None else self.points + self.points.new_tensor([dx, dy])
        boxes = None if self.boxes is None else self.boxes + self.boxes.new_tensor([dx, dy, dx, dy])
        return self._replace(points=points, boxes=boxes)


@dataclass(frozen=True)
class ImageFeatures:
    """What SAM's image encoder says of B images, or of one window of each."""

    embedding: Tensor  # (B, C, h, w), what the mask decoder reads
    states: Tensor | None = None  # (B, D, h, w), what the last transformer block leaves
    origin: tuple[int, int] = (0, 0)  # (x, y) of the window's corner in patches; (0, 0) for a whole image

    @property
    def described(self) -> Tensor:
        """H_v, what the language model is told about, (B, C, h, w): SAM's features, as in the paper."""
        return self.embedding

    def float(self) -> ImageFeatures:
        """The same in float32."""
        return replace(self, embedding=self.embedding.float(), states=None if self.states is None else self.states.float())


@dataclass(frozen=True)
class LanguageStates:
    """Hidden states of the language model that read B images, with words about each: what a VLSA variant gets."""

    image: Tensor  # (B, N, D), of the last layer at the image tokens
    words: Tensor | None = None  # (B, T, D), of the last layer at the words' tokens, padded on the right
    valid: Tensor | None = None  # bool (B, T), False where words is padding
    texts: tuple[str | None, ...] = ()  # the words themselves, one text per image; None: the constant instruction
    layers: dict[int, LanguageStates] = field(default_factory=dict)  # the same of further layers, by their number

    @property
    def last(self) -> Tensor:
        """The state at each text's last token, (B, D)."""
        ends = self.valid.sum(1) - 1  # (B,)
        return self.words[torch.arange(len(ends), device=ends.device), ends]

    @property
    def mean(self) -> Tensor:
        """The mean state over each text's tokens, (B, D)."""
        weights = self.valid[..., None].to(self.words.dtype)  # (B, T, 1)
        return (self.words * weights).sum(1) / weights.sum(1)

    def map(self, change: Callable[[str, Tensor], Tensor], where: str = "") -> LanguageStates:
        """The same with all states changed: `change` is called with a name, such as "image" or "words12", and states."""
        words = None if self.words is None else change(f"words{where}", self.words)
        layers = {n: x.map(change, str(n)) for n, x in self.layers.items()}
        return replace(self, image=change(f"image{where}", self.image), words=words, layers=layers)


def per_instance(x: Tensor, total: int) -> Tensor:
    """Repeats the entries of x (B, ...) to (total, ...), where total = B * I; one image is expanded without a copy."""
    if len(x) == total:
        return x
    return x.expand(total, *x.shape[1:]) if len(x) == 1 else x.repeat_interleave(total // len(x), dim=0)
