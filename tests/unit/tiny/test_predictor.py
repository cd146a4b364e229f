"""Several views of one image: which view draws an object, and knowledge that is computed once."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.tiny.test_sam import STEM as SMALL
from ullsam import ULLSAM, Predictor
from ullsam.tiny import ScalePredictor
from ullsam.tiny.predictor import widths


def test_a_predictor_suits_its_model():
    tiny, plain = (Predictor(ULLSAM.from_preset("debug", **changes)) for changes in ({"sam": SMALL}, {}))
    assert type(tiny) is ScalePredictor and type(plain) is Predictor


def test_the_language_model_reads_an_image_once_for_all_scales(monkeypatch):
    model = ULLSAM.from_preset("debug", sam=replace(SMALL, scales=(1.0, 0.5, 0.25)))
    predictor, calls, grids = Predictor(model), [], []
    monkeypatch.setattr(model.llm, "read", lambda x, *a, f=model.llm.read: calls.append(x.shape) or f(x, *a))
    inject = model.vlsa.inject
    monkeypatch.setattr(model.vlsa, "inject", lambda k, *a: grids.append(tuple(k.shape[2:])) or inject(k, *a))
    predictor.set_image(np.random.default_rng(0).integers(0, 255, (100, 128, 3), dtype=np.uint8))
    predictor.predict([[5, 5]], [1])
    predictor.predict([[50, 50]], [1])
    assert calls == [(1, 16, model.llm.dim)]  # the whole canvas: 8 x 8 patches, four to a token
    assert set(grids) <= {(8, 8), (4, 4), (2, 2)} and (4, 4) in grids


@pytest.fixture
def scaled(monkeypatch):
    """Predictors with views of the given scales of 128 px, whose masks are as wide as the first point's x says."""
    seen = []

    def segment(features, prompts, knowledge):
        side = 4 * features.embedding.shape[-1]
        seen.append((side, prompts.labels.shape[1]))
        logits = torch.full((1, prompts.labels.shape[1], 4, side, side), -1.0)
        for i, x in enumerate(prompts.points[0, :, 0, 0]):
            logits[0, i, :, 0, : round(float(x) / 4) + 1] = side  # 4 pixels of the view for each place
        return logits, torch.zeros(logits.shape[:3])

    def build(*scales):
        predictor = Predictor(ULLSAM.from_preset("debug", sam=replace(SMALL, scales=scales)))
        predictor.set_image(np.zeros((128, 128), np.uint8))
        monkeypatch.setattr(predictor.model, "segment", segment)
        return predictor

    return build, seen


POINTS = np.array([[[50.0, 5]], [[5.0, 5]], [[120.0, 5]]])  # x at 39, 4 and 94 % of the image


@pytest.mark.parametrize(
    ("scales", "drawn", "last"),
    [
        ((1.0,), [(32, 3)], [32, 32, 32]),
        ((1.0, 0.5), [(16, 3), (32, 1)], [16, 32, 16]),  # the second object is narrow in the first view that is looked at
        ((1.0, 0.5, 0.25), [(16, 3), (8, 1), (32, 1)], [16, 32, 8]),  # and the third one wide
    ],
)
def test_the_width_chooses_the_view(scaled, scales, drawn, last):
    build, seen = scaled
    predictor = build(*scales)
    found = predictor.predict(POINTS, np.ones((3, 1)))
    assert seen[:1] == drawn[:1] and sorted(seen) == sorted(drawn)
    assert found.masks.shape == (3, 128, 128) and found.logits.shape == (3, 32, 32)
    np.testing.assert_allclose(found.masks[:, 0].sum(-1) / 128, POINTS[:, 0, 0] / 128, atol=0.13)  # a place of eight
    assert [float(x) for x in found.logits.max((1, 2))] == last
    several = predictor.predict(POINTS, np.ones((3, 1)), multimask=True)
    assert several.masks.shape == (3, 3, 128, 128) and np.array_equal(several.masks[:, 0], found.masks)


def test_a_mask_prompt_is_read_on_the_whole_canvas(scaled):
    build, seen = scaled
    build(1.0, 0.5, 0.25).predict([[100, 5]], [1], mask=np.zeros((32, 32)))
    assert seen == [(32, 1)]


def test_widths_by_hand():
    logits = torch.full((4, 10, 10), -1.0)
    logits[0, 2:5, 3] = 1
    logits[1, 7, 1:10] = 1
    logits[2, 0, 0] = logits[2, 9, 9] = 1
    np.testing.assert_allclose(widths(logits), [0.3, 0.9, 1.0, 0.0])
