"""The predictor: images as people have them, prompts in their pixels, masks on their grid, sentences for mistakes."""

import numpy as np
import pytest
import torch

from ullsam import ULLSAM, InputError, Predictor


@pytest.fixture(scope="module")
def model():
    return ULLSAM.from_preset("debug")


@pytest.fixture
def ready(model):
    predictor = Predictor(model)
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8))
    return predictor


@pytest.mark.parametrize("shape", [(40, 70), (70, 40, 1), (33, 21, 2), (50, 50, 3), (20, 90, 4), (64, 64, 5), (300, 200)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, bool])
def test_any_image_gives_masks_on_its_own_grid(model, shape, dtype):
    image = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    predictor = Predictor(model)
    predictor.set_image(image)
    prediction = predictor.predict([[5, 6], [15, 16]], [1, 0])
    assert prediction.masks.shape == (1, *shape[:2]) and prediction.masks.dtype == bool
    assert prediction.scores.shape == (1,) and prediction.logits.shape == (1, 16, 16)


def test_many_objects_equal_one_at_a_time(ready):
    rng = np.random.default_rng(1)
    points, labels = rng.random((40, 3, 2)) * [69, 39], rng.integers(0, 2, (40, 3))
    together = ready.predict(points, labels)
    assert together.masks.shape == (40, 40, 70)
    for i in (0, 33):
        alone = ready.predict(points[i], labels[i])
        np.testing.assert_allclose(together.logits[i], alone.logits[0], rtol=1e-3, atol=1e-4)


def test_boxes_masks_and_candidates(ready):
    box = ready.predict(box=[5, 5, 30, 20])
    again = ready.predict(box=[[5, 5, 30, 20], [1, 1, 9, 9]], mask=np.stack([box.logits[0]] * 2))
    assert again.masks.shape == (2, 40, 70)
    three = ready.predict([[5, 5]], [1], multimask=True)
    assert three.masks.shape == (1, 3, 40, 70) and three.scores.shape == (1, 3) and three.logits.shape == (1, 3, 16, 16)


def test_features_and_knowledge_once_per_image(ready, monkeypatch):
    calls = []
    model = ready.model
    monkeypatch.setattr(model, "encode", lambda *a, f=model.encode: calls.append("encode") or f(*a))
    monkeypatch.setattr(model, "knowledge", lambda *a, f=model.knowledge: calls.append("knowledge") or f(*a))
    ready.set_image(np.zeros((30, 30), np.uint8))
    ready.predict([[1, 1]], [1], use_vlk=False)
    assert calls == ["encode"]
    for _ in range(3):
        ready.predict([[1, 1]], [1])
    ready.describe(max_new_tokens=2)
    assert calls == ["encode", "knowledge"]


def test_knowledge_changes_the_mask_and_can_be_left_out(ready):
    with_it, without = (ready.predict([[20, 20]], [1], use_vlk=use).logits for use in (True, False))
    assert not np.array_equal(with_it, without)


def test_point_lands_on_its_pixel_in_a_padded_image(model):
    predictor = Predictor(model)
    predictor.set_image(np.zeros((32, 64), np.uint8))
    square = predictor.view.square
    assert square.scale == 1 and np.array_equal(square.points_in(np.array([[3.0, 4]], np.float32)), [[3, 4]])


def test_two_predictors_do_not_see_each_other(model):
    a, b = Predictor(model), Predictor(model)
    a.set_image(np.zeros((30, 40), np.uint8))
    with pytest.raises(InputError, match="No image is set"):
        b.predict([[1, 1]], [1])
    b.set_image(np.full((50, 20), 9, np.uint8))
    assert a.size == (30, 40) and b.size == (50, 20)


BAD = {
    "no prompt": ({}, "There is no prompt"),
    "points without labels": (dict(points=[[1, 1]]), "need labels"),
    "labels without points": (dict(labels=[1]), "need labels"),
    "not numbers": (dict(points=[["a", 1]], labels=[1]), "points are not numbers"),
    "three coordinates": (dict(points=[[1, 2, 3]], labels=[1]), r"points have shape \(1, 3\)"),
    "no points": (dict(points=np.zeros((0, 2)), labels=[]), "points have shape"),
    "NaN": (dict(points=[[np.nan, 1]], labels=[1]), "finite numbers"),
    "lengths differ": (dict(points=[[1, 1]], labels=[1, 0]), "do not match"),
    "label 2": (dict(points=[[1, 1]], labels=[2]), r"1 \(inside\) or 0"),
    "right of the image": (dict(points=[[70, 1]], labels=[1]), r"\(70, 1\) lies outside the image of 70 x 40"),
    "swapped axes": (dict(points=[[30, 60]], labels=[1]), r"points are \(x, y\)"),
    "negative": (dict(points=[[-1, 1]], labels=[1]), "lies outside"),
    "empty box": (dict(box=[5, 5, 5, 9]), "A box is x0, y0, x1, y1"),
    "box outside": (dict(box=[80, 5, 90, 9]), "touches the image"),
    "box of three": (dict(box=[1, 2, 3]), "boxes have shape"),
    "counts differ": (dict(points=[[1, 1]], labels=[1], box=[[1, 1, 9, 9]] * 2), "different numbers of objects"),
    "mask of wrong size": (dict(mask=np.zeros((40, 70))), "mask logits have shape"),
    "mask not square": (dict(mask=np.zeros((3, 16))), r"give the \(I, 16, 16\) logits"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_prompts_get_a_sentence(ready, case):
    prompt, sentence = BAD[case]
    with pytest.raises(InputError, match=sentence):
        ready.predict(**prompt)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 5)),
        np.zeros((1, 1), np.uint8),
        np.full((9, 9), np.nan),
        np.full((9, 9), np.inf),
        np.zeros((9, 9, 7)),
        np.zeros(9),
        np.array([["a"]]),
        np.zeros((9, 9), complex),
    ],
)
def test_bad_images_get_a_sentence_and_keep_the_old_state(ready, image):
    with pytest.raises(InputError):
        ready.set_image(image)
    assert ready.size == (40, 70) and ready.predict([[1, 1]], [1]).masks.shape == (1, 40, 70)


def test_results_need_no_gradient(ready):
    assert not torch.is_grad_enabled() or not ready.view.features.embedding.requires_grad


# ---------------------------------------------------------------- words


@pytest.fixture(scope="module")
def listener():
    """A model whose knowledge is the state of the last word, behind the image."""
    return ULLSAM.from_preset("debug", vlsa="last_word", centred_states=True)


IMAGE = np.random.default_rng(3).integers(0, 256, (40, 70), dtype=np.uint8)


@pytest.mark.parametrize("name", ["paper", "last_word", "film", "cross_attention"])
def test_words_change_the_mask_of_the_same_click(name):
    predictor = Predictor(ULLSAM.from_preset("debug", vlsa=name))
    predictor.set_image(IMAGE)
    none, one, other, again = (predictor.predict([[20, 20]], [1], words=x) for x in (None, "nucleus", "cell", "nucleus"))
    assert not np.allclose(one.logits, other.logits) and not np.allclose(one.logits, none.logits)
    np.testing.assert_array_equal(again.logits, one.logits)
    with torch.no_grad():
        features = predictor.view.features
        knowledge = predictor.model.knowledge(features, "nucleus")
    np.testing.assert_allclose(predictor.knowledge("nucleus"), knowledge, rtol=1e-3, atol=1e-4)


def test_words_with_boxes_candidates_and_many_objects(listener):
    predictor = Predictor(listener)
    predictor.set_image(IMAGE)
    points = np.random.default_rng(0).random((11, 2, 2)) * [69, 39]
    found = predictor.predict(points, np.ones((11, 2)), words="nucleus")
    assert found.masks.shape == (11, 40, 70) and found.presence.shape == (11,) and found.presence.dtype == np.float32
    three = predictor.predict(box=[5, 5, 30, 20], words="nucleus", multimask=True)
    assert three.masks.shape == (1, 3, 40, 70) and three.presence.shape == (1,)


def test_words_alone_name_one_mask_of_the_whole_image(listener):
    predictor = Predictor(listener)
    predictor.set_image(IMAGE)
    found, other = predictor.segment("nuclei"), predictor.segment("neurites")
    assert found.masks.shape == (1, 40, 70) and found.scores.shape == (1,) and found.logits.shape == (1, 16, 16)
    assert 0 <= found.presence[0] <= 1 and not np.allclose(found.logits, other.logits)
    surest = np.sort(found.logits[0].ravel())[-16:].mean()  # the mean of the 16 surest pixels' logits, as a probability
    np.testing.assert_allclose(found.presence, [1 / (1 + np.exp(-surest))], rtol=1e-5)


def test_presence_is_for_words_alone(listener):
    predictor = Predictor(listener)
    predictor.set_image(IMAGE)
    assert predictor.predict([[5, 5]], [1]).presence is None


def test_a_phrase_is_read_once_and_the_image_once_for_all_phrases(listener, monkeypatch):
    calls, knowledge, remember = [], listener.knowledge, listener.remember
    monkeypatch.setattr(listener, "knowledge", lambda *a: calls.append(("knowledge", a[1])) or knowledge(*a))
    monkeypatch.setattr(listener, "remember", lambda *a: calls.append(("remember",)) or remember(*a))
    predictor = Predictor(listener)
    predictor.set_image(IMAGE)
    for words in ("nucleus", "cell", "nucleus", None, "cell", None):
        predictor.predict([[20, 20]], [1], words=words)
    assert calls == [("remember",), ("knowledge", "nucleus"), ("knowledge", "cell"), ("knowledge", None)]
    before = predictor.knowledge("nucleus")
    predictor.set_image(255 - IMAGE)
    assert not torch.equal(predictor.knowledge("nucleus"), before)
    assert calls[4:] == [("remember",), ("knowledge", "nucleus")]


WRONG_WORDS = {
    "with a mask": (
        dict(mask=np.zeros((16, 16)), words="nucleus"),
        "words need knowledge, which a mask prompt or use_vlk=Fa",
    ),
    "without knowledge": (dict(points=[[1, 1]], labels=[1], words="nucleus", use_vlk=False), "words need knowledge"),
    "empty": (dict(points=[[1, 1]], labels=[1], words=" "), "words is empty"),
    "very long": (dict(points=[[1, 1]], labels=[1], words="x" * 201), "words has 201 letters"),
    "a number": (dict(points=[[1, 1]], labels=[1], words=7), "words must be one text"),
    "a list": (dict(points=[[1, 1]], labels=[1], words=["nucleus", "cell"]), "words must be one text"),
    "no prompt": (dict(words="nucleus"), "There is no prompt"),
}


@pytest.mark.parametrize("case", WRONG_WORDS)
def test_wrong_words_get_a_sentence(ready, case):
    prompt, sentence = WRONG_WORDS[case]
    with pytest.raises(InputError, match=sentence):
        ready.predict(**prompt)


def test_words_need_an_image_and_a_model_that_follows_them():
    with pytest.raises(InputError, match="No image is set"):
        Predictor(ULLSAM.from_preset("debug")).segment("nuclei")
    deaf = Predictor(ULLSAM.from_preset("debug", llm=None, vlsa="none"))
    deaf.set_image(IMAGE)
    for ask in (lambda: deaf.segment("nuclei"), lambda: deaf.predict([[1, 1]], [1], words="nuclei")):
        with pytest.raises(InputError, match="has no VLSA and cannot follow words"):
            ask()
