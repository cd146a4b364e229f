"""The click widget's gestures with mouse and fingers, its settings and its list; each test leaves the picture as it was."""

import numpy as np
import pytest

from tests.browser.driver import Picture, iou, open_notebook, told

pytestmark = pytest.mark.browser
STATES = """w => {
  window.lines = [];
  const status = w.querySelector(".ullsam-status");
  new MutationObserver(() => window.lines.push(status.textContent)).observe(status, { childList: true });
}"""


@pytest.fixture(scope="module")
def page(chromium, lab):
    page = open_notebook(chromium, lab, "gestures", ".told-colours")
    yield page
    page.close()


@pytest.fixture
def cells(page):
    picture = Picture(page.locator(".of-cells .ullsam"))
    yield picture
    picture.canvas.focus()
    picture.press("Escape", "0", "+")


@pytest.fixture
def told_cells(page):
    return lambda: told(page, "cells")


@pytest.fixture
def fingers(page):
    """Touches the page at CSS pixels of the window: a list of places for each moment, the last one is let go."""
    devices = page.context.new_cdp_session(page)
    devices.send("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 5})

    def touch(*moments):
        for kind, places in zip(["touchStart"] + ["touchMove"] * len(moments), moments, strict=False):
            points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
            devices.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        devices.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    yield touch
    devices.send("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_inside_or_outside_by_shift_buttons_and_keys(page, cells, told_cells, objects):
    places = [at for _, at in objects[:5]]
    cells.click(*places[0])
    page.keyboard.down("Shift")
    cells.click(*places[1])
    page.keyboard.up("Shift")
    cells.button("Outside")
    cells.click(*places[2])
    cells.press("+")
    cells.click(*places[3])
    cells.press("-")
    cells.click(*places[4])
    assert told_cells()["points"] == [[*at, label] for at, label in zip(places, (1, 0, 0, 1, 0), strict=True)]


def test_a_point_is_dragged_and_a_click_on_it_takes_it_away(cells, told_cells, objects):
    start, end = objects[0][1], objects[1][1]
    cells.click(*start)
    cells.drag(start, end)
    assert told_cells()["points"] == [[*end, 1]]
    cells.click(*end)
    assert told_cells()["points"] == [] and not told_cells()["area"]


@pytest.mark.parametrize("hand", ["middle button", "space"])
def test_the_picture_is_moved(page, cells, told_cells, hand):
    cells.zoom_to(8)
    before, (x, y) = cells.view, cells.place(128, 128)
    button = "middle" if hand == "middle button" else "left"
    cells.canvas.focus()
    if hand == "space":
        page.keyboard.down(" ")
    page.mouse.move(x, y)
    page.mouse.down(button=button)
    page.mouse.move(x + 60, y - 35, steps=3)
    page.mouse.up(button=button)
    if hand == "space":
        page.keyboard.up(" ")
    cells.settle()
    assert cells.view == pytest.approx({"scale": 8, "x": before["x"] + 60, "y": before["y"] - 35}, abs=0.5)
    assert told_cells()["box"] is None and told_cells()["points"] == []


def test_two_fingers_zoom_and_leave_no_point(cells, told_cells, fingers, objects, nuclei):
    size, (truth, at) = nuclei.labels.shape, objects[1]
    before, (x, y) = cells.view, cells.place(*at)
    fingers([(x - 20, y), (x + 20, y)], [(x - 30, y), (x + 30, y)], [(x - 50, y), (x + 50, y)])
    cells.settle()
    assert cells.view["scale"] == pytest.approx(2.5 * before["scale"], rel=0.01)
    assert cells.place(*at) == pytest.approx([x, y], abs=1), "the place between the fingers has moved"
    assert told_cells()["points"] == []
    fingers([(x, y)])
    cells.settle()
    assert told_cells()["points"] == [[*at, 1]]
    cells.press("0")
    assert iou(cells.mask(size), truth) > 0.7


def test_settings_of_the_segmentation(page, cells, told_cells, objects, nuclei, shot):
    size, (truth, at) = nuclei.labels.shape, objects[1]
    cells.click(*at)
    knowledge = cells.widget.get_by_label("Vision-language knowledge (VLK)")
    knowledge.uncheck()
    cells.settle()
    assert not told_cells()["vlk"] and iou(cells.mask(size), truth) > 0.7
    cells.canvas.focus()
    cells.press("v")
    assert told_cells()["vlk"] and knowledge.is_checked()
    before = cells.mask(size)
    cells.widget.get_by_label("Automatic outside points").check()
    cells.settle()
    ring = told_cells()["suggested"]
    assert len(ring) == 3 and not any(before[round(y), round(x)] or label for x, y, label in ring)
    assert iou(cells.mask(size), truth) > 0.6
    shot(page, "lab_negatives")
    cells.widget.get_by_label("Automatic outside points").uncheck()
    areas = []
    for name in ("candidate 1", "candidate 2", "candidate 3", "single mask"):
        cells.widget.get_by_label("Mask").select_option(name)
        cells.settle()
        areas.append(told_cells()["area"])
    assert len({*areas[:3]}) > 1, "all candidates are the same mask"
    assert told_cells()["candidate"] == 0 and told_cells()["suggested"] == []


def test_another_model_is_told_to_encode(page, cells, told_cells, objects):
    cells.click(*objects[0][1])
    cells.widget.evaluate(STATES)
    cells.widget.get_by_label("Model").select_option("uSAM-tiny")
    cells.settle()
    assert told_cells()["model"] == "uSAM-tiny" and told_cells()["area"]
    assert "Encoding the image ..." in page.evaluate("window.lines")
    assert cells.widget.get_by_label("Vision-language knowledge (VLK)").is_disabled()
    cells.widget.get_by_label("Model").select_option("uLLSAM-tiny")
    cells.settle()


def test_contrast_gamma_and_opacity_are_for_the_eye_only(cells, told_cells, objects, nuclei):
    size, (truth, at) = nuclei.labels.shape, objects[1]
    cells.widget.get_by_text("Picture", exact=True).click()
    plain = cells.sampled(size).mean()
    for name, value, brighter in (("Gamma", "2.5", True), ("Gamma", "0.5", False), ("Bright end", "60", True)):
        cells.widget.get_by_label(name).fill(value)
        cells.settle()
        assert (cells.sampled(size).mean() > plain) == brighter, name
        cells.button("Reset contrast")
    assert cells.sampled(size).mean() == pytest.approx(plain, abs=0.01)
    cells.click(*at)
    inner, area = told_cells()["area"], cells.mask(size) & truth
    for share in ("0", "1"):
        cells.widget.get_by_label("Opacity").fill(share)
        cells.settle()
        tint = cells.sampled(size)[area]
        assert np.median(tint[:, 0] - tint[:, 2]) == pytest.approx(255 * int(share), abs=5)
    assert told_cells()["area"] == inner
    cells.widget.get_by_label("Opacity").fill("0.4")


def test_one_channel_is_shown_and_segmented(page, nuclei, objects):
    colours = Picture(page.locator(".of-colours .ullsam"))
    colours.widget.get_by_text("Picture", exact=True).click()
    colours.widget.get_by_label("Channel").select_option("red")
    colours.settle()
    assert told(page, "colours")["channel"] == 0
    size, (truth, at) = nuclei.labels.shape, objects[1]
    assert np.abs(colours.sampled(size) - nuclei.image[..., :1]).mean() < 12
    colours.click(*at)
    assert iou(colours.mask(size), truth) > 0.7


def test_the_list_selects_renames_edits_and_deletes(page, cells, told_cells, objects, nuclei, shot):
    for _, at in objects[:3]:
        cells.click(*at)
        cells.press("s")
    name = cells.widget.get_by_label("Name of instance 2")
    name.fill("mitosis <b>")
    name.press("Enter")
    cells.settle()
    assert [i["name"] for i in told_cells()["instances"]] == ["object", "mitosis <b>", "object"]
    cells.button("Select instance 3, object")
    assert told_cells()["selected"] == 3
    cells.button("Edit instance 2, mitosis <b>")
    assert told_cells()["points"] == [[*objects[1][1], 1]]
    assert iou(cells.mask(nuclei.labels.shape), objects[1][0]) > 0.7
    shot(page, "lab_list")
    cells.button("Save instance")
    cells.button("Delete instance 1, object")
    assert [(i["number"], i["name"]) for i in told_cells()["instances"]] == [(2, "mitosis <b>"), (3, "object")]
    cells.canvas.focus()
    cells.press("u")
    assert [i["number"] for i in told_cells()["instances"]] == [1, 2, 3]
