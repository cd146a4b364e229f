"""The click widget is driven through its methods and through browser messages; no browser is needed."""

import sys
import types

import anywidget._util
import cv2
import numpy as np
import pytest
import torch

from ullsam import ULLSAM, InputError, Predictor
from ullsam.config import preset
from ullsam.widgets import ClickSession, ClickToSegment


@pytest.fixture(scope="module")
def predictor():
    """The debug model with knowledge that counts: its random VLSA is scaled up."""
    model = ULLSAM.from_preset("debug")
    with torch.no_grad():
        for parameter in model.vlsa.parameters():
            parameter.mul_(4).add_(0.1)
    return Predictor(model)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)


@pytest.fixture
def demo(predictor, image):
    return ClickToSegment(predictor, image)


def browser(widget, kind, **values):
    """What the browser's message does."""
    widget._handle_custom_msg({"kind": kind, "values": values}, [])


def picture(content, flags=cv2.IMREAD_UNCHANGED):
    return cv2.imdecode(np.frombuffer(content, np.uint8), flags)


def save_something(widget):
    """Clicks until the random model gives a mask with free pixels, and saves it."""
    for x in range(2, 56, 6):
        widget.click(x, 20)
        if (widget.mask & (widget.labels == 0)).any():
            return widget.save_instance()
        widget.clear()
    raise AssertionError("the debug model gives no mask at all")


def test_clicks_give_the_predictors_mask(demo, predictor, image):
    assert demo.mask is None and demo.points.shape == (0, 2) and demo.size == [56, 40]
    demo.click(30, 20)
    demo.click(5, 3, positive=False)
    predictor.set_image(image)
    expected = predictor.predict([[30, 20], [5, 3]], [1, 0]).masks[0]
    assert demo.mask.shape == (40, 56) and demo.mask.dtype == bool
    np.testing.assert_array_equal(demo.mask, expected)
    assert demo.points.tolist() == [[30, 20], [5, 3]] and demo.point_labels.tolist() == [1, 0]
    assert demo.dots == [[30, 20, 1], [5, 3, 0]]


def test_a_click_on_a_point_removes_it(demo):
    demo.click(30, 20)
    demo.click(5, 3)
    demo.click(30, 21)
    assert demo.points.tolist() == [[5, 3]]
    demo.click(5, 3)
    assert demo.mask is None and not picture(demo.mask_png)[..., 3].any()


def test_undo_goes_back_step_by_step(demo):
    demo.click(30, 20)
    first = demo.mask
    demo.click(5, 3, positive=False)
    demo.clear()
    assert demo.mask is None and len(demo.points) == 0
    demo.undo()
    assert len(demo.points) == 2
    demo.undo()
    np.testing.assert_array_equal(demo.mask, first)
    demo.undo()
    assert demo.mask is None
    with pytest.raises(InputError, match="nothing to undo"):
        demo.undo()


def test_saved_instances_are_numbered_and_do_not_overwrite(demo):
    assert save_something(demo) == 1
    before = demo.labels
    demo._session.mask = np.ones((40, 56), bool)
    assert demo.save_instance() == 2
    assert demo.labels.dtype == np.int32 and set(np.unique(demo.labels)) <= {0, 1, 2}
    np.testing.assert_array_equal(demo.labels == 1, before == 1)
    np.testing.assert_array_equal(demo.labels == 2, before == 0)
    assert demo.mask is None and "2 instance(s)" in demo.status
    demo.undo()
    np.testing.assert_array_equal(demo.labels, before)
    demo._session.mask = before == 1
    with pytest.raises(InputError, match="saved already"):
        demo.save_instance()
    np.testing.assert_array_equal(demo.labels, before)


def test_undo_of_a_save_brings_the_points_back(demo):
    save_something(demo)
    demo.undo()
    assert not demo.labels.any() and len(demo.points) == 1 and demo.mask.any()


def test_knowledge_can_be_switched(demo, predictor, image):
    demo.click(30, 20)
    predictor.set_image(image)
    masks = [predictor.predict([[30, 20]], [1], use_vlk=use_vlk).masks[0] for use_vlk in (True, False)]
    assert (masks[0] != masks[1]).any()
    for use_vlk in (True, False, True):
        assert demo.vlk is use_vlk
        expected = predictor.predict([[30, 20]], [1], use_vlk=use_vlk).masks[0]
        np.testing.assert_array_equal(demo.mask, expected)
        demo.toggle_vlk()


def test_a_plain_sam_has_no_knowledge_to_switch_and_no_words(image):
    widget = ClickToSegment(Predictor(ULLSAM.from_config(preset("debug", llm=None, vlsa="none"))), image)
    widget.click(30, 20)
    assert widget.vlk is False and widget.mask.shape == (40, 56)
    for gesture in (widget.toggle_vlk, widget.describe):
        with pytest.raises(InputError, match="tiny"):
            gesture()


def test_description_reaches_the_browser(demo):
    assert demo.describe() == demo.description and isinstance(demo.description, str)


def test_browser_messages_do_what_the_methods_do(demo, predictor, image):
    other = ClickToSegment(predictor, image)
    browser(demo, "click", x=30, y=20, positive=True)
    browser(demo, "click", x=5, y=3, positive=False)
    other.click(30, 20)
    other.click(5, 3, positive=False)
    assert demo.get_state(["dots", "mask_png", "status"]) == other.get_state(["dots", "mask_png", "status"])
    browser(demo, "undo")
    assert len(demo.points) == 1 and demo.finished == 3


def test_errors_are_one_sentence_in_the_status_and_change_nothing(demo):
    demo.click(30, 20)
    mask, done = demo.mask, demo.finished
    with pytest.raises(InputError, match="outside the image"):
        demo.click(56, 20)
    assert "outside the image" in demo.status and len(demo.points) == 1 and demo.mask is mask
    browser(demo, "click", x=-1, y=0, positive=True)
    assert "outside the image" in demo.status
    browser(demo, "paint")
    assert "no gesture 'paint'" in demo.status
    browser(demo, "_show")
    assert "no gesture '_show'" in demo.status and demo.finished == done + 4
    demo.undo()
    assert demo.mask is None


def test_a_mistake_of_the_program_is_shown_too(demo):
    with pytest.raises(TypeError):
        demo._do("click", y=3)
    assert demo.status.startswith("TypeError")


def test_widgets_that_share_a_predictor_do_not_share_state(predictor, image):
    first = ClickToSegment(predictor, image)
    second = ClickToSegment(predictor, np.zeros((20, 20), np.uint8))
    first.click(30, 20)
    alone = ClickToSegment(predictor, image)
    alone.click(30, 20)
    np.testing.assert_array_equal(first.mask, alone.mask)
    assert second.mask is None and second.labels.shape == (20, 20)


def test_pictures_show_image_and_masks(predictor):
    image = np.add.outer(np.arange(40), np.arange(56))[..., None].repeat(3, -1).astype(np.uint8) * [2, 1, 0]
    image = image.astype(np.uint8)
    demo = ClickToSegment(predictor, image)
    demo._session.mask = np.zeros((40, 56), bool)
    demo._session.mask[10:20, 30:50] = True
    demo._session.labels = np.where(np.arange(56) < 9, 7, 0).repeat(40).reshape(56, 40).T.astype(np.int32)
    demo._show()
    overlay = picture(demo.mask_png)
    np.testing.assert_array_equal(overlay[..., 3] > 0, demo.mask | (demo.labels > 0))
    assert abs(picture(demo.image_jpeg)[..., ::-1].astype(int) - image).mean() < 3


@pytest.mark.parametrize(("shape", "dtype", "shown"), [
    ((1000, 2000), np.uint16, (384, 768)),
    ((90, 30, 2), np.float32, (90, 30)),
    ((3, 50, 70), np.uint8, (50, 70)),
])
def test_any_image_is_shown_at_display_size(predictor, shape, dtype, shown):
    widget = ClickToSegment(predictor, (np.random.default_rng(0).random(shape) * 200).astype(dtype))
    assert picture(widget.image_jpeg).shape == (*shown, 3) and picture(widget.mask_png).shape == (*shown, 4)
    width, height = widget.size
    widget.click(width - 1, height - 1)
    assert widget.mask.shape == (height, width) == widget.labels.shape


def test_session_refuses_an_unusable_image(predictor):
    with pytest.raises(InputError):
        ClickSession(predictor, np.full((8, 8), np.nan))


def test_colab_widget_manager_is_switched_on(monkeypatch, predictor, image):
    calls = []
    google, colab, output = (types.ModuleType(n) for n in ("google", "google.colab", "google.colab.output"))
    output.enable_custom_widget_manager = lambda: calls.append(1)
    monkeypatch.setitem(sys.modules, "google", google)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setattr("importlib.import_module", lambda name: sys.modules.setdefault(name, output))
    anywidget._util.enable_custom_widget_manager_once.cache_clear()
    ClickToSegment(predictor, image)
    monkeypatch.delitem(sys.modules, "google.colab.output")
    assert calls == [1]
