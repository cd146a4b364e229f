"""An image seen at several scales: small objects are drawn from the whole canvas, large ones from a small view.

An object is drawn from the middle view first; if it is wide there, again from the next smaller view, whose features span
more of it; if it is narrow, from the next larger one, for detail. The language model reads the whole canvas once; smaller
views get its knowledge averaged to their grid.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ullsam.accel.upsampling import enlarge_masks
from ullsam.data.io import to_rgb8
from ullsam.predictor import Predictor, View

NARROW, WIDE = 0.2, 0.55  # up to and beyond these fractions of the middle view's side another view draws the object


class ScalePredictor(Predictor):
    """A `Predictor` that encodes the image at each of the model's scales (`TinySamConfig.scales`)."""

    @torch.inference_mode()
    def set_image(self, image: np.ndarray) -> None:
        """Encodes an image at all scales, see `Predictor.set_image`."""
        sam, image = self.model.config.sam, to_rgb8(image)
        self.views = tuple(self.encode(image, round(sam.image_size * scale)) for scale in sorted(sam.scales))
        self._begin(self.views[-1])  # the whole canvas

    def decode(self, given: dict[str, np.ndarray], knowledge: Tensor | None, candidates: slice) -> tuple[np.ndarray, ...]:
        """Masks, scores and logits of each object from the view that suits its width, see `Predictor.decode`."""
        self._ready()
        whole = "masks" in given or ("labels" in given and (given["labels"] < 0).all())  # mask prompts, or words alone
        views = self.views[-1:] if whole else self.views
        middle = (len(views) - 1) // 2
        logits, scores = self.decode_view(views[middle], given, knowledge, candidates)
        width = widths(logits[:, 0])
        choice = np.clip(middle + (width <= NARROW) - (width > WIDE), 0, len(views) - 1)
        drawn = list(zip(logits, scores, strict=True))
        for n in set(choice) - {middle}:
            which = np.flatnonzero(choice == n)
            again = self.decode_view(views[n], {k: v[which] for k, v in given.items()}, knowledge, candidates)
            for i, *result in zip(which, *again, strict=True):
                drawn[i] = result
        masks = [enlarge_masks(x, views[n].square) for n, (x, _) in zip(choice, drawn, strict=True)]
        side = (4 * self.model.config.sam.grid,) * 2  # all logits at the resolution of the whole canvas
        logits = [F.interpolate(x[None], side, mode="bilinear")[0] if x.shape[1:] != side else x for x, _ in drawn]
        return tuple(np.stack(x) for x in (masks, [score.cpu() for _, score in drawn], [x.cpu() for x in logits]))

    def decode_view(self, view: View, given: dict, knowledge: Tensor | None, candidates: slice) -> tuple[Tensor, Tensor]:
        """`Predictor.decode_view` with the knowledge of the whole canvas brought to the view's grid."""
        grid = view.features.embedding.shape[2:]
        if knowledge is not None and knowledge.ndim == 4 and knowledge.shape[2:] != grid:
            knowledge = F.interpolate(knowledge, grid, mode="area")  # (1, C, h, w) -> (1, C, h', w')
        return super().decode_view(view, given, knowledge, candidates)


def widths(logits: Tensor) -> np.ndarray:
    """Longer side of each mask of logits (I, n, n), as a fraction of n: (I,)."""
    inside = logits > 0
    sides = [_span(inside.any(axis)) for axis in (1, 2)]
    return (torch.maximum(*sides) / logits.shape[-1]).cpu().numpy()


def _span(taken: Tensor) -> Tensor:
    """From the first to the last position that is taken, of (I, n) positions: (I,), 0 where none is."""
    positions = torch.arange(1, taken.shape[1] + 1, device=taken.device)
    last = (taken * positions).amax(1)
    first = (taken * positions.flip(0)).amax(1)
    return (last + first - taken.shape[1]).clamp(min=0)
