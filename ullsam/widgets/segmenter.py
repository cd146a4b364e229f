"""From the prompts of a click session to the mask: models, encoded pages, automatic negative points, descriptions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import cv2
import numpy as np

from ullsam.errors import InputError
from ullsam.model import ULLSAM
from ullsam.predictor import Predictor
from ullsam.sbr import sample_points
from ullsam.widgets.instances import Point, Region, State
from ullsam.widgets.pages import Pages

NEGATIVES = 3  # automatic points around the mask, as many as the paper trains with
ENCODED = 8  # encoded images (of models, pages and channels) that are kept at hand


class Segmenter:
    """Models by name, and what they make of the pages of one image.

    Args:
        models: a ULLSAM or Predictor, or a dict of them by name. Only their networks are used, so that many segmenters
            can share them.
        pages: the image.

    Raises:
        InputError: there is no model, or something that is none.
    """

    def __init__(self, models, pages: Pages):
        if not isinstance(models, Mapping):
            models = {_predictor(models).model.config.name: models}
        if not models:
            raise InputError("There is no model; give one, for example ullsam.load('tiny').")
        self._models = {str(name): _predictor(model) for name, model in models.items()}
        self._pages = pages
        self._predictors: dict[tuple, Predictor] = {}  # by State.encoding, the one used last at the end

    @property
    def names(self) -> list[str]:
        """Names of the models."""
        return list(self._models)

    def has_vlk(self, state: State) -> bool:
        """The current model has vision-language knowledge."""
        return self._models[state.model].model.vlsa is not None

    def is_encoded(self, state: State) -> bool:
        """A mask needs no image encoder any more."""
        return state.encoding in self._predictors

    def predictor(self, state: State) -> Predictor:
        """A predictor that no one else uses and that has encoded the page."""
        predictor = self._predictors.pop(state.encoding, None)
        if predictor is None:
            predictor = copy.copy(self._models[state.model])
            predictor.set_image(self._pages.view(state.page, state.channel))
        self._predictors = dict([*self._predictors.items(), (state.encoding, predictor)][-ENCODED:])
        return predictor

    def segmented(self, state: State) -> State:
        """The state with the mask of its prompts, and with automatic points if they are wished for."""
        if not state.prompts and state.box is None:
            return replace(state, suggested=(), region=None)
        mask = self._mask(state, state.prompts)
        ring = negative_ring(mask, state.prompts) if state.negatives else ()
        mask = self._mask(state, state.prompts + ring) if ring else mask
        return replace(state, suggested=ring, region=Region.of(mask))

    def describe(self, state: State, on_text: Callable[[str], None] | None = None) -> str:
        """What the language model says about the page; `on_text` gets the text so far while it grows."""
        return self.predictor(state).describe(on_text=on_text)

    def _mask(self, state: State, prompts: tuple[Point, ...]) -> np.ndarray:
        table = np.array(prompts).reshape(-1, 3)  # (P, 3), also for P = 0
        points = {"points": table[:, :2], "labels": table[:, 2]} if len(table) else {}
        several = state.candidate > 0
        found = self.predictor(state).predict(**points, box=state.box, use_vlk=state.vlk, multimask=several).masks[0]
        return found[state.candidate - 1] if several else found


def _predictor(model) -> Predictor:
    if isinstance(model, ULLSAM):
        return Predictor(model)
    if not hasattr(model, "set_image"):
        raise InputError(f"{model!r} is no model; give a ULLSAM, as from ullsam.load('tiny'), or a Predictor.")
    return model


def negative_ring(mask: np.ndarray, prompts: tuple[Point, ...] = ()) -> tuple[Point, ...]:
    """Three points outside an object, from the ring that SBR trains with; the same ones for the same mask.

    Args:
        mask: bool (H, W).
        prompts: points inside count as the object too, so that the ring never lies on them.

    Returns:
        (x, y, 0) each; none where the object is nothing or everything.

    Source: paper, section 3.2.2, Eq. 4.
    """
    inside = mask.astype(np.uint8)
    for x, y, label in prompts:
        if label:
            cv2.circle(inside, (round(x), round(y)), max(1, round(max(mask.shape) / 100)), 1, cv2.FILLED)
    if not inside.any() or inside.all():
        return ()
    points = sample_points(inside, 1, np.random.default_rng(0), n_pos=0, n_neg=NEGATIVES).points
    return tuple((float(x), float(y), 0) for x, y in points)
