"""The box of words: the same click with two words, words without a click, and a keyboard that only types in the box.

ULLSAM_BROWSER_MODEL names another model than the shipped one, such as the folder of a training run.
"""

import base64
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.browser.conftest import SETUP, write_notebook
from tests.browser.driver import Picture, iou, open_notebook
from ullsam.checkpoints.loading import shipped
from ullsam.data.referring import draw_ambiguous, synthetic_scenes

MODEL = os.environ.get("ULLSAM_BROWSER_MODEL", "tiny")
CONFIG = json.loads(
    (Path(MODEL) if Path(MODEL).is_dir() else shipped("weights/ullsam-tiny")).joinpath("config.json").read_text()
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CONFIG.get("trained_with_words"), reason=f"{MODEL} was not trained with words"),
]
SIDE = 256  # of the scene, pixels
QUESTION = "What do you want to segment?"
MODELS = f'{{"uLLSAM-tiny": ullsam.load({MODEL!r}), "uSAM-tiny": ullsam.load("usam-tiny")}}'
ORACLE = """
import numpy as np
from ullsam.tiny.predictor import ScalePredictor
truths = np.load("truths.npz")
class Oracle(ScalePredictor):
    def predict(self, points=None, labels=None, words=None, **more):
        found = super().predict(points, labels, words=words, **more)
        if words in truths: found.masks[0] = truths[words]
        return found
models["uLLSAM-tiny"] = Oracle(models["uLLSAM-tiny"])
"""
TELL = """
import base64
import numpy as np


def tell_mask(name):
    demo, told = ClickToSegment(models, name, project=False), ipywidgets.HTML(layout={"display": "none"})

    def tell(_):
        mask = base64.b64encode(np.packbits(np.zeros(demo.size[::-1], bool) if demo.mask is None else demo.mask)).decode()
        told.value = html.escape(json.dumps({**demo.shown, "status": demo.status, "mask": mask}), quote=False)

    demo.observe(tell, ["shown", "status"])
    tell(None)
    told.add_class("told-nested")
    demo.add_class("of-nested")
    display(told, demo)
"""


@pytest.fixture(scope="module")
def scene():
    """The first scene of seed 0 that no training sees: nuclei in cells."""
    return synthetic_scenes(1, 0, SIDE, "test")[0]


@pytest.fixture(scope="module")
def asked(scene):
    """The first click that may mean a nucleus or the whole cell around it, and the true mask of each."""
    rng = np.random.default_rng(0)
    while True:
        x, y = (int(v) for v in draw_ambiguous(scene, rng, "nucleus").point)
        truths = {key: scene.structures[key] == scene.structures[key][y, x] for key in ("nucleus", "cell")}
        cell = truths["cell"]
        if not (cell[[0, -1]].any() or cell[:, [0, -1]].any()):
            return (x, y), truths


@pytest.fixture(scope="module")
def page(chromium, folder, lab, scene, asked):
    np.savez(folder / "truths.npz", **asked[1])
    cv2.imwrite(str(folder / "nested.png"), scene.image[..., ::-1])
    write_notebook(folder / "words.ipynb", [SETUP.replace("{MODELS}", MODELS) + ORACLE, TELL + "\n\ntell_mask('nested.png')"])
    page = open_notebook(chromium, lab, "words", ".told-nested")
    yield page
    page.close()


@pytest.fixture
def nested(page):
    picture = Picture(page.locator(".of-nested .ullsam"))
    yield picture
    say(picture, "")
    picture.canvas.focus()
    picture.press("Escape", "0")


def say(picture, words, leave=False):
    """Types words into the box and presses Enter, or goes on to the picture."""
    box = picture.widget.get_by_label(QUESTION)
    box.fill(words)
    if leave:
        picture.canvas.focus()
    else:
        box.press("Enter")
    picture.settle()


def told(picture):
    """What Python says, with the mask bool (H, W)."""
    picture.page.wait_for_timeout(200)
    values = json.loads(picture.page.locator(".told-nested").text_content())
    bits = np.frombuffer(base64.b64decode(values["mask"]), np.uint8)
    return values | {"mask": np.unpackbits(bits).reshape(SIDE, SIDE) > 0}


def test_one_click_and_two_words_give_two_masks(page, nested, asked, shot):
    point, truths = asked
    nested.click(*point)
    found = {}
    for word in truths:
        say(nested, word)
        found[word] = told(nested)
        shot(page, f"words_{word}")
        assert found[word]["points"] == [[*point, 1]] and found[word]["words"] == word
    ious = {word: round(float(iou(found[word]["mask"], truths[word])), 3) for word in truths}
    print(ious)
    assert min(ious.values()) > 0.7, ious
    nested.button("Undo (U)")
    assert (told(nested)["mask"] == found["nucleus"]["mask"]).all()
    assert nested.widget.get_by_label(QUESTION).input_value() == "nucleus"


def test_words_without_a_click_mean_all_that_they_name(page, nested, scene, shot):
    say(nested, "nuclei", leave=True)
    assert not told(nested)["mask"].any() and "segment all that" in nested.status
    nested.button("Segment all")
    by_button = told(nested)
    assert by_button["alone"] and by_button["points"] == [] and by_button["mask"].any()
    shot(page, "words_alone")
    nested.canvas.focus()
    nested.press("Escape")
    assert not told(nested)["mask"].any()
    say(nested, "nuclei")
    assert (told(nested)["mask"] == by_button["mask"]).all()
    nested.canvas.focus()
    nested.press("s")
    assert nested.widget.get_by_label("Name of instance 1").input_value() == "nuclei"
    nested.press("u", "u")


def test_typing_is_no_shortcut(page, nested, asked):
    nested.click(*asked[0])
    before, cells = told(nested), page.locator(".jp-Cell").count()
    nested.canvas.focus()
    nested.press("w")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == QUESTION
    page.keyboard.type("sunder V+-0 bad xx")
    nested.settle()
    now = told(nested)
    assert {k: now[k] for k in ("points", "vlk", "instances", "page", "words")} == {
        k: before[k] for k in ("points", "vlk", "instances", "page", "words")
    }
    assert page.locator(".jp-Cell").count() == cells
    page.keyboard.press("Enter")
    nested.settle()
    assert told(nested)["words"] == "sunder V+-0 bad xx"
    assert "not in the training vocabulary" in nested.widget.locator(".ullsam-left > .ullsam-hint").inner_text()


def test_suggestions_errors_and_a_model_that_cannot_follow(page, nested, shot):
    box = nested.widget.get_by_label(QUESTION)
    options = "input => [...input.list.options].map(option => option.value)"
    assert {"nucleus", "nuclei", "mitochondria"} <= set(box.evaluate(options))
    say(nested, "n" * 201)
    assert "words has 201 letters" in nested.status
    nested.widget.get_by_label("Model").select_option("uSAM-tiny")
    nested.settle()
    assert box.is_disabled() and nested.widget.get_by_role("button", name="Segment all").is_disabled()
    assert nested.widget.locator(".ullsam-ask p").inner_text() == (
        "uSAM-tiny works without a language model and cannot follow words; choose uLLSAM-tiny."
    )
    shot(page, "words_disabled")
    nested.widget.get_by_label("Model").select_option("uLLSAM-tiny")
    nested.settle()
    assert box.is_enabled()
