"""The click widget is driven through its methods and through browser messages; no browser is needed."""

import re
import shutil
import subprocess
import sys
import types
import zlib

import anywidget._util
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ullsam import ULLSAM, InputError, Predictor
from ullsam.config import preset
from ullsam.widgets import ClickToSegment
from ullsam.widgets.click import GESTURES, _layer
from ullsam.widgets.export import EXPORT_FORMATS
from ullsam.widgets.files import FileExchange
from ullsam.widgets.live import PointerImage


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
def demo(Discs, image):
    return ClickToSegment({"discs": Discs(), "large": Discs("large", radius=9)}, image)


def browser(widget, kind, **values):
    """What the browser's message does."""
    widget._handle_custom_msg({"kind": kind, "values": values, "id": "7"}, [])


@pytest.fixture
def sent(demo, monkeypatch):
    """Messages to the browser: the names of what changed, or the content of an answer."""
    messages = []

    def keep(data, metadata=None, buffers=None):
        buffered = [path[0] for path in data.get("buffer_paths", [])]
        messages.append(data["content"] if data["method"] == "custom" else {*data["state"], *buffered})

    monkeypatch.setattr(demo.comm, "send", keep)
    return messages


def picture(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def opened(layer, dtype):
    """A layer as the browser decodes it, on its whole grid."""
    x, y, width, height, columns, rows = np.frombuffer(layer[:24], "<u4").tolist()
    data = np.frombuffer(zlib.decompress(layer[24:]), dtype)
    whole = np.zeros((rows, columns), np.int64)
    part = np.unpackbits(data)[: width * height] if dtype == "u1" else data
    whole[y : y + height, x : x + width] = part.reshape(height, width)
    return whole


def test_clicks_give_the_predictors_mask(predictor, image):
    demo = ClickToSegment(predictor, image)
    assert demo.mask is None and demo.points.shape == (0, 2) and demo.size == [56, 40]
    demo.click(30, 20)
    demo.click(5, 3, positive=False)
    predictor.set_image(image)
    expected = predictor.predict([[30, 20], [5, 3]], [1, 0]).masks[0]
    assert demo.mask.shape == (40, 56) and demo.mask.dtype == bool
    np.testing.assert_array_equal(demo.mask, expected)
    assert demo.points.tolist() == [[30, 20], [5, 3]] and demo.point_labels.tolist() == [1, 0]
    assert demo.shown["points"] == [[30, 20, 1], [5, 3, 0]] and demo.shown["area"] == expected.sum()


def test_knowledge_can_be_switched(predictor, image):
    demo = ClickToSegment(predictor, image)
    demo.click(30, 20)
    predictor.set_image(image)
    masks = [predictor.predict([[30, 20]], [1], use_vlk=use_vlk).masks[0] for use_vlk in (True, False)]
    assert (masks[0] != masks[1]).any()
    for use_vlk in (True, False, True):
        assert demo.vlk is use_vlk is demo.shown["vlk"]
        np.testing.assert_array_equal(demo.mask, masks[0] if use_vlk else masks[1])
        demo.toggle_vlk()


def test_a_plain_sam_has_no_knowledge_to_switch_and_no_words(image):
    widget = ClickToSegment(Predictor(ULLSAM.from_config(preset("debug", llm=None, vlsa="none"))), image)
    widget.click(30, 20)
    assert widget.vlk is False and widget.shown["has_vlk"] is False and widget.mask.shape == (40, 56)
    no_words = "debug works without a language model and cannot follow words; load a model that was trained with words."
    assert widget.shown["no_words"] == no_words
    for gesture, remedy in (
        (widget.toggle_vlk, "load 'tiny'"),
        (widget.describe, "load one"),
        (lambda: widget.set_words("nuclei"), "load a model"),
    ):
        with pytest.raises(InputError, match=remedy):
            gesture()
        assert widget.failed and remedy in widget.status


def test_the_browser_gets_mask_and_instances_as_they_are(demo):
    assert demo.mask_bits == demo.saved_ids == b""
    demo.click(30, 20)
    np.testing.assert_array_equal(opened(demo.mask_bits, "u1"), demo.mask)
    assert demo.save_instance() == 1 and demo.mask_bits == b""
    demo.set_box(2, 3, 9, 30)
    assert demo.save_instance() == 2 and demo.box is None
    np.testing.assert_array_equal(opened(demo.saved_ids, "<u4"), demo.labels)
    assert demo.labels.dtype == np.int32 and set(np.unique(demo.labels)) == {0, 1, 2}
    assert set(demo.colors) == {"1", "2"} and demo.colors["1"] != demo.colors["2"]
    assert [(i["number"], i["area"]) for i in demo.shown["instances"]] == [(n, (demo.labels == n).sum()) for n in (1, 2)]
    demo.edit(1)  # the instance being edited is shown as the current mask only
    np.testing.assert_array_equal(opened(demo.saved_ids, "<u4"), np.where(demo.labels == 2, 2, 0))
    np.testing.assert_array_equal(opened(demo.mask_bits, "u1"), demo.labels == 1)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.sampled_from([8, 1000]))
def test_layers_keep_their_pixels(height, width, seed, longest):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((height, width)) < 0.05, rng.integers(1, 2**31, (height, width)), 0).astype(np.int32)
    sent = _layer(labels, longest, lambda ids: ids.astype("<u4"))
    if longest > 40:
        expected = opened(sent, "<u4") if sent else np.zeros((height, width))
        np.testing.assert_array_equal(expected, labels)
    elif sent:
        shown = opened(sent, "<u4")
        assert max(shown.shape) <= longest and set(np.unique(shown)) <= {0, *np.unique(labels)}


def test_only_what_changed_is_sent(demo, sent):
    browser(demo, "encode")
    sent.clear()
    browser(demo, "click", x=30, y=20, positive=True, grab=0)
    assert sent == [{"mask_bits", "shown", "status"}, {"answered": "7"}]
    sent.clear()
    browser(demo, "save_instance")
    assert sent[0] == {"mask_bits", "saved_ids", "colors", "shown", "status"}
    sent.clear()
    browser(demo, "set_display", low=5, high=95, gamma=1.5)
    assert sent[0] == {"image_jpeg", "shown"} and (demo.shown["low"], demo.shown["gamma"]) == (5, 1.5)
    sent.clear()
    browser(demo, "rename", number=1, name="nucleus")
    assert sent[0] == {"shown"} and demo.shown["instances"][0]["name"] == "nucleus"


def test_words_reach_the_browser_and_the_status(demo):
    assert "nuclei" in demo.suggestions and (demo.shown["words"], demo.shown["alone"], demo.shown["hint"]) == ("", False, "")
    browser(demo, "set_words", words=" nuclei ")
    assert demo.words == demo.shown["words"] == "nuclei"
    assert demo.status == "Click on an object, or segment all that \u201cnuclei\u201d names."
    browser(demo, "segment_words", words="nuclei")
    assert demo.status == f"All that \u201cnuclei\u201d names, mask of {demo.mask.sum()} pixels; 0 instances saved."
    assert demo.shown["alone"] and demo.shown["area"] == demo.mask.sum() == opened(demo.mask_bits, "u1").sum()
    demo.click(30, 20)
    demo.set_box(20, 10, 40, 30)
    said = f"1 point and a box and the words \u201cnuclei\u201d, mask of {demo.mask.sum()} pixels; 0 instances saved."
    assert demo.status == said and not demo.shown["alone"]
    demo.set_words("absent things")
    assert demo.status.startswith("I see no absent things here. 1 point and a box and")
    assert "not in the training vocabulary" in demo.shown["hint"] and not demo.failed
    demo.save_instance()
    assert demo.shown["instances"][0] | {"area": 0} == {
        "number": 1,
        "name": "absent things",
        "words": "absent things",
        "area": 0,
        "page": 0,
    }
    browser(demo, "segment_words", words="n" * 300)
    assert demo.failed and "300 letters" in demo.status and demo.words == "absent things" and demo.mask is None


def test_words_of_two_widgets_stay_apart(Discs, image):
    shared = Discs()
    first, second = ClickToSegment(shared, image), ClickToSegment(shared, image)
    for widget in (first, second):
        widget.click(30, 20)
    first.set_words("nuclei")
    assert second.words == "" and first.mask.sum() > second.mask.sum()


def test_what_takes_a_moment_is_said_before_it_begins(demo):
    seen = []
    demo.observe(lambda change: seen.append(change["new"]), "busy")
    browser(demo, "encode")
    assert seen == ["Encoding the image ...", ""] and demo.shown["encoded"]
    demo.click(30, 20)
    assert len(seen) == 2
    demo.set_model("large")
    assert seen[2:] == ["Encoding the image ...", ""] and demo.shown["model"] == "large"


def test_the_description_grows_in_the_browser(demo):
    seen = []
    demo.observe(lambda change: seen.append((change["new"], bool(demo.busy))), "description")
    assert demo.describe() == demo.description == "two discs"
    assert seen == [("two", True), ("two discs", True)] and demo.busy == ""


def test_browser_messages_do_what_the_methods_do(demo, Discs, image):
    other = ClickToSegment({"discs": Discs(), "large": Discs("large", radius=9)}, image)
    gestures = [
        ("click", {"x": 30, "y": 20, "positive": True, "grab": 0}),
        ("click", {"x": 5, "y": 3, "positive": False, "grab": 0}),
        ("move_point", {"index": 0, "x": 28, "y": 21}),
        ("set_box", {"x0": 2, "y0": 3, "x1": 20, "y1": 30}),
        ("clear_box", {}),
        ("set_words", {"words": "cells"}),
        ("segment_words", {"words": "nuclei"}),
        ("click", {"x": 30, "y": 20, "positive": True, "grab": 0}),
        ("toggle_negatives", {}),
        ("set_candidate", {"k": 2}),
        ("toggle_vlk", {}),
        ("set_model", {"name": "large"}),
        ("set_channel", {"channel": 1}),
        ("save_instance", {}),
        ("undo", {}),
        ("redo", {}),
        ("select", {"number": 1}),
        ("rename", {"number": 1, "name": "cell"}),
        ("edit", {"number": 1}),
        ("clear", {}),
        ("describe", {}),
        ("encode", {}),
        ("set_display", {"low": 1, "high": 90, "gamma": 2}),
        ("set_page", {"z": 0}),
        ("delete", {"number": 1}),
    ]
    assert {kind for kind, _ in gestures} | {"export"} == {name for name, values in GESTURES.items() if values is not None}
    names = [name for name in demo.keys if not name.startswith("_") and name not in ("layout", "tooltip", "tabbable")]
    for kind, values in gestures:
        browser(demo, kind, **values)
        getattr(other, kind)(**values)
        assert demo.get_state(names) == other.get_state(names) and not demo.failed, (kind, demo.status)


def test_errors_are_one_sentence_in_the_status_and_change_nothing(demo, sent):
    demo.click(30, 20)
    mask = demo.mask
    with pytest.raises(InputError, match="outside the image"):
        demo.click(56, 20)
    assert "outside the image" in demo.status and demo.failed and len(demo.points) == 1 and demo.mask is mask
    browser(demo, "click", x=-1, y=0, positive=True, grab=0)
    for kind, values in [
        ("paint", {}),
        ("_show", {}),
        ("session", {}),
        ("import_labels", {"source": "/etc/passwd"}),
        ("export", {"folder": "/tmp", "formats": ["tiff"]}),
        ("click", {"x": 1}),
        (None, {}),
    ]:
        sent.clear()
        browser(demo, kind, **values)
        assert f"no gesture {kind!r}" in demo.status and demo.failed and sent[-1] == {"answered": "7"}
    demo.undo()
    assert demo.mask is None and not demo.failed


def test_a_mistake_of_the_program_is_shown_too(demo):
    with pytest.raises(TypeError):
        demo._do("click", y=3)
    assert demo.status.startswith("TypeError") and demo.failed and demo.busy == ""


def test_widgets_that_share_a_predictor_do_not_share_state(Discs, image):
    shared = Discs()
    first, second = ClickToSegment(shared, image), ClickToSegment(shared, np.zeros((20, 20), np.uint8))
    first.click(30, 20)
    alone = ClickToSegment(Discs(), image)
    alone.click(30, 20)
    np.testing.assert_array_equal(first.mask, alone.mask)
    assert second.mask is None and second.labels.shape == (20, 20) and second.shown["points"] == []


def test_status_and_repr_tell_where_the_work_stands(demo):
    assert repr(demo) == "ClickToSegment(56 x 40 pixels: Click on an object.)"
    demo.click(30, 20)
    demo.set_box(20, 10, 40, 30)
    assert demo.status == f"1 point and a box, mask of {demo.mask.sum()} pixels; 0 instances saved."
    demo.save_instance()
    assert "1 instance saved" in repr(demo)


@pytest.mark.parametrize(
    ("shape", "dtype", "shown"),
    [((1500, 3000), np.uint16, (1024, 2048)), ((90, 30, 2), np.float32, (90, 30)), ((3, 50, 70), np.uint8, (50, 70))],
)
def test_any_image_is_shown(Discs, shape, dtype, shown):
    widget = ClickToSegment(Discs(), (np.random.default_rng(0).random(shape) * 200).astype(dtype))
    assert picture(widget.image_jpeg).shape == (*shown, 3)
    width, height = widget.size
    widget.click(width - 1, height - 1)
    assert widget.mask.shape == (height, width) == widget.labels.shape
    assert opened(widget.mask_bits, "u1").shape == shown


def test_the_picture_is_the_image(Discs):
    image = (np.add.outer(np.arange(40), np.arange(56))[..., None] * [2, 1, 0]).astype(np.uint8)
    widget = ClickToSegment(Discs(), image)
    assert abs(picture(widget.image_jpeg).astype(int) - image).mean() < 3


def test_a_stack_is_paged_through(Discs):
    stack = np.zeros((3, 30, 40), np.uint8)
    stack[1] = 200
    widget = ClickToSegment(Discs(), stack, stack=True)
    widget.click(20, 15)
    widget.save_instance()
    before = widget.image_jpeg
    widget.set_page(1)
    assert widget.shown["pages"] == 3 and widget.shown["page"] == 1 and widget.image_jpeg != before
    assert widget.saved_ids == b"" and set(widget.colors) == {"1"} and widget.shown["instances"][0]["page"] == 0
    widget.select(1)
    assert widget.shown["page"] == 0 and widget.image_jpeg == before and opened(widget.saved_ids, "<u4").any()


def test_files_go_where_python_says(Discs, demo, image, tmp_path):
    cv2.imwrite(str(tmp_path / "cells.png"), image)
    widget = ClickToSegment(Discs(), tmp_path / "cells.png")
    assert widget.export_folder == tmp_path / "cells_export" and str(tmp_path) in widget.shown["folder"]
    assert str(demo.export_folder) == "ullsam_export"
    assert list(EXPORT_FORMATS) == [name for name, _ in widget.shown["exports"]]
    widget.click(30, 20)
    widget.save_instance()
    browser(widget, "export", formats=["csv"])
    assert not widget.failed and (tmp_path / "cells_export").is_dir() and str(tmp_path) in widget.status
    again = ClickToSegment(Discs(), tmp_path / "cells.png")
    np.testing.assert_array_equal(opened(again.saved_ids, "<u4"), widget.labels)


def test_an_unusable_image_is_refused(Discs):
    with pytest.raises(InputError):
        ClickToSegment(Discs(), np.full((8, 8), np.nan))


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_parts_of_the_front_end_make_one_module(tmp_path):
    assert 'from "./' not in ClickToSegment._esm
    (tmp_path / "widget.mjs").write_text(ClickToSegment._esm, encoding="utf-8")
    (tmp_path / "try.mjs").write_text('import widget from "./widget.mjs"; console.log(typeof widget.render);')
    done = subprocess.run(["node", tmp_path / "try.mjs"], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "function", done.stderr


@pytest.mark.parametrize("widget", [ClickToSegment, FileExchange, PointerImage])
def test_a_front_end_needs_no_other_address_and_no_loader(widget):
    script, style = (str(getattr(widget, name, "")) for name in ("_esm", "_css"))  # VS Code and Colab take them as they are
    assert "export default" in script
    assert not re.findall(r"https?://(?!www\.w3\.org/)\S+", script + style)  # that one is the name of SVG, not loaded
    loaders = r"^import\b|\bimport\(|\brequire(?:js)?\b|\bdefine\(|@import|\bjupyterapp\b|\burl\("
    assert not re.findall(loaders, script + style, flags=re.MULTILINE)


def test_colab_widget_manager_is_switched_on(monkeypatch, Discs, image):
    calls = []
    google, colab, output = (types.ModuleType(n) for n in ("google", "google.colab", "google.colab.output"))
    output.enable_custom_widget_manager = lambda: calls.append(1)
    monkeypatch.setitem(sys.modules, "google", google)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setattr("importlib.import_module", lambda name: sys.modules.setdefault(name, output))
    anywidget._util.enable_custom_widget_manager_once.cache_clear()
    ClickToSegment(Discs(), image)
    monkeypatch.delitem(sys.modules, "google.colab.output")
    assert calls == [1]
