"""Boxes in, masks out: driven by methods and by what jupyter-bbox-widget sends; no browser is needed."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ullsam import ULLSAM, InputError, Predictor, preset
from ullsam.widgets.boxes import BoxToSegment, from_browser, to_browser


@pytest.fixture(scope="module")
def model():
    return ULLSAM.from_preset("debug")


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)


@pytest.fixture
def demo(model, image):
    return BoxToSegment(model, image, ["nucleus", "debris"])


def give_masks(demo, monkeypatch):
    """The model's place is taken by one that fills each box."""

    def fill(box, use_vlk):
        masks = np.zeros((len(box), 40, 56), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, box.astype(int), strict=True):
            mask[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] = True
        calls.append(len(box))
        return type("Found", (), {"masks": masks, "scores": np.full(len(box), 0.5)})

    calls = []
    monkeypatch.setattr(demo.predictor, "predict", fill)
    return calls


def test_boxes_give_the_predictors_masks(demo, model, image):
    assert demo.add_box(5, 6, 30, 25) == 1 and demo.add_box(31, 2, 50, 38, "debris") == 2
    predictor = Predictor(model)
    predictor.set_image(image)
    expected = predictor.predict(box=[[5, 6, 30, 25], [31, 2, 50, 38]])
    np.testing.assert_array_equal(demo.masks, expected.masks)
    np.testing.assert_allclose(demo.scores, expected.scores, rtol=1e-5)
    assert demo.boxes.tolist() == [[5, 6, 30, 25], [31, 2, 50, 38]] and demo.names == ["nucleus", "debris"]
    assert "1 nucleus, 1 debris" in demo.status


def test_labels_and_classes_of_overlapping_masks(demo, monkeypatch):
    give_masks(demo, monkeypatch)
    demo.add_box(10, 10, 13, 13, "debris")
    demo.add_box(5, 5, 24, 24)
    demo.add_box(40, 0, 41, 1, "debris")
    assert demo.labels[11, 11] == 1 and demo.labels[6, 6] == 2 and demo.labels[0, 40] == 3 and demo.labels[0, 0] == 0
    assert np.bincount(demo.class_labels.ravel()).tolist() == [40 * 56 - 404, 400 - 16, 16 + 4]
    box = {"x0": 10, "y0": 10, "x1": 13, "y1": 13}
    assert demo.table()[0] == {"number": 1, "class": "debris", **box, "area": 16, "score": 0.5}


def test_only_new_boxes_are_segmented(demo, monkeypatch):
    calls = give_masks(demo, monkeypatch)
    demo.add_box(5, 5, 9, 9)
    demo.add_box(15, 5, 19, 9)
    demo.name_box(1, "debris")
    demo.remove_box(1)
    assert calls == [1, 1] and demo.boxes.tolist() == [[15, 5, 19, 9]] and demo.masks.sum() == 25
    demo.move_box(1, 15, 5, 20, 9)
    demo.toggle_vlk()
    assert calls == [1, 1, 1, 1] and demo.masks.sum() == 30 and demo.vlk is False
    demo.clear()
    assert demo.masks.shape == (0, 40, 56) and not demo.labels.any() and demo.boxes.shape == (0, 4)


def test_wrong_input_is_one_sentence_and_changes_nothing(demo):
    demo.add_box(5, 6, 30, 25)
    before = demo.masks
    wrong = [
        lambda: demo.add_box(9, 9, 3, 20),
        lambda: demo.add_box(60, 0, 80, 20),
        lambda: demo.add_box("a", 0, 1, 1),
        lambda: demo.add_box(0, 0, float("nan"), 9),
        lambda: demo.move_box(2, 0, 0, 9, 9),
        lambda: demo.remove_box(0),
        lambda: demo.remove_box("1"),
        lambda: demo.move_box(1.0, 0, 0, 9, 9),
        lambda: demo.add_box(0, 0, 10**400, 9),
        lambda: demo.set_boxes(None),
        lambda: demo.set_boxes({"x": 1}),
        lambda: demo.set_boxes([3]),
        lambda: demo.name_box(1, "cell"),
        lambda: demo.choose_class("cell"),
        lambda: demo.add_class("debris"),
        lambda: demo.add_class(" "),
        lambda: demo.set_boxes([{"x": 1, "y": 2}]),
    ]
    for gesture in wrong:
        with pytest.raises(InputError) as error:
            gesture()
        assert demo.status == str(error.value) and demo.boxes.tolist() == [[5, 6, 30, 25]]
    np.testing.assert_array_equal(demo.masks, before)
    assert demo.classes == ("nucleus", "debris") and demo.label == "nucleus"
    with pytest.raises(InputError, match="no class"):
        BoxToSegment(demo.predictor, demo.image, [])


def test_a_new_class_is_for_the_next_box(demo):
    demo.add_class(" cell ")
    demo.add_box(5, 6, 30, 25)
    assert demo.names == ["cell"] and demo.view is not None and demo._canvas.label == "cell"


def test_browser_boxes_become_pixels(demo, monkeypatch):
    give_masks(demo, monkeypatch)
    demo.view  # noqa: B018 builds the view
    scale = 520 / 56
    demo._canvas.bboxes = [
        {
            "x": round(10 * scale),
            "y": round(20 * scale),
            "width": round(5 * scale),
            "height": round(4 * scale),
            "label": "debris",
        }
    ]
    assert demo.boxes.tolist() == [[10, 20, 14, 23]] and demo.names == ["debris"] and demo.masks.sum() == 20
    begun = [*demo._canvas.bboxes, {"x": 3, "y": 3, "width": 0, "height": 0, "label": "nucleus"}]
    demo._canvas.bboxes = begun  # the mouse went down: no box yet, and the browser's list stays as it is
    assert len(demo.boxes) == 1 and demo.skipped == 1 and demo._canvas.bboxes == begun and "too small" in demo.status
    demo._canvas.bboxes = [begun[0], begun[1] | {"width": 100, "height": 100}]
    assert len(demo.boxes) == 2 and demo.skipped == 0
    demo.remove_box(1)
    assert len(demo._canvas.bboxes) == 1 and demo._canvas.bboxes[0]["label"] == "nucleus"


@given(st.tuples(*[st.integers(-20, 5000)] * 2, *[st.integers(1, 900)] * 2), st.sampled_from([0.11, 0.5, 1.0, 2.25, 9.3]))
def test_pixels_survive_the_way_through_the_browser(box, scale):
    x, y, width, height = box
    edges = x, y, x + width, y + height
    shown = to_browser(edges, "a", scale)
    assert from_browser(shown | {k: shown[k] / scale for k in ("x", "y", "width", "height")}) == edges


def test_picture_is_drawn_and_sent(demo, monkeypatch):
    give_masks(demo, monkeypatch)
    demo.view  # noqa: B018 builds the view
    empty = demo._result.value
    demo.add_box(5, 6, 30, 25)
    assert demo._result.value != empty
    shown = cv2.imdecode(np.frombuffer(demo._result.value, np.uint8), cv2.IMREAD_COLOR)
    assert min(shown.shape[:2]) > 250
    texts = [t.get_text() for t in demo.figure().legends[0].get_texts()]
    assert texts == ["nucleus (1)"]


def test_widgets_share_nothing(demo, image):
    other = BoxToSegment(demo.predictor, image[:20, :20], "cell")
    demo.add_box(5, 6, 30, 25)
    assert len(other.boxes) == 0 and other.classes == ("cell",) and other.labels.shape == (20, 20)


def test_a_plain_sam_has_no_knowledge_to_switch(image):
    demo = BoxToSegment(ULLSAM.from_config(preset("debug", llm=None, vlsa="none")), image)
    demo.add_box(5, 6, 30, 25)
    assert demo.vlk is False and demo.masks.shape == (1, 40, 56)
    with pytest.raises(InputError, match="tiny"):
        demo.toggle_vlk()
