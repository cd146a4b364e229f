"""The click widget in JupyterLab, with a mouse and a keyboard; the tests of this file share one page and go on in order."""

import cv2
import numpy as np
import pytest
import tifffile

from tests.browser.conftest import LANDMARKS
from tests.browser.driver import PATIENCE, Picture, command, iou, open_notebook, told

pytestmark = pytest.mark.browser
LIMIT = PATIENCE * 1000  # ms, for what waits for a kernel


@pytest.fixture(scope="module")
def page(chromium, lab):
    page = open_notebook(chromium, lab, "try", ".told-wide")
    yield page
    page.close()


@pytest.fixture
def cells(page):
    return Picture(page.locator(".of-cells .ullsam"))


@pytest.fixture
def wide(page):
    return Picture(page.locator(".of-wide .ullsam"))


def test_a_click_on_an_object_shows_its_mask(page, cells, objects, nuclei, shot):
    truth, at = objects[1]
    before = cells.sampled(nuclei.labels.shape)
    assert np.abs(before - nuclei.image).mean() < 12, "the picture is not where the view says"
    cells.click(*at)
    assert told(page, "cells")["points"] == [[*at, 1]]
    shown = cells.mask(nuclei.labels.shape)
    assert iou(shown, truth) > 0.7
    shot(page, "lab_click")


def test_a_point_outside_changes_the_mask_and_undo_takes_it_back(page, cells, objects, nuclei):
    size, (truth, at) = nuclei.labels.shape, objects[1]
    before = cells.mask(size)
    ring = cv2.dilate(truth.astype(np.uint8), np.ones((9, 9))) > 0
    y, x = np.argwhere(ring & (nuclei.labels == 0))[0]
    cells.click(int(x), int(y), button="right")
    assert told(page, "cells")["points"] == [[*at, 1], [x, y, 0]]
    assert not cells.mask(size)[y, x] and iou(cells.mask(size), truth) > 0.6
    cells.button("Undo (U)")
    assert told(page, "cells")["points"] == [[*at, 1]]
    assert iou(cells.mask(size), before) > 0.98


def test_saving_describing_and_exporting(page, cells, objects, nuclei, folder, shot):
    cells.button("Save instance")
    assert not cells.mask(nuclei.labels.shape).any()
    assert "1 instance saved" in cells.status
    cells.button("Describe")
    assert len(cells.widget.locator(".ullsam-words").inner_text()) > 20
    cells.widget.get_by_text("Export", exact=True).first.click()
    cells.widget.get_by_label("Measurements (CSV)").check()
    cells.button("Export")
    assert cells.status.startswith("Written")
    labels = tifffile.imread(folder / "cells_export" / "cells_labels.tif")
    assert labels.dtype == np.uint16 and iou(labels == 1, objects[1][0]) > 0.7
    assert (folder / "cells_export" / "cells_measurements.csv").read_text().count("\n") == 2
    shot(page, "lab_saved")


def test_a_reload_of_the_page_keeps_the_work(page, objects, nuclei):
    command(page, "docmanager:save")
    page.wait_for_timeout(2000)
    page.reload(timeout=LIMIT)
    cells = Picture(page.locator(".of-cells .ullsam"))
    assert cells.widget.get_by_label("Name of instance 1").input_value() == "object"
    assert (cells.sampled(nuclei.labels.shape)[objects[1][0]].std(axis=1) > 3).mean() > 0.7, "its ghost is coloured"
    cells.click(*objects[0][1])
    assert iou(cells.mask(nuclei.labels.shape), objects[0][0]) > 0.7
    cells.press("s")
    assert "2 instances saved" in cells.status


def test_a_stack_of_16_bits(page, objects, nuclei):
    stack = Picture(page.locator(".of-stack .ullsam"))
    stack.widget.get_by_label("Page").fill("1")
    stack.settle()
    assert told(page, "stack")["page"] == 1
    truth, at = objects[2]
    stack.click(*at)
    assert iou(stack.mask(nuclei.labels.shape), truth) > 0.7
    stack.button("Save instance")
    assert "page 2" in stack.widget.locator(".ullsam-list").inner_text()


@pytest.mark.parametrize("ratio", [1, 2])
@pytest.mark.parametrize("scale", [0.5, 1, 2])
def test_coordinates_are_right_to_the_pixel(page, wide, scale, ratio, shot):
    devices = page.context.new_cdp_session(page)
    devices.send(
        "Emulation.setDeviceMetricsOverride", {"width": 1280, "height": 720, "deviceScaleFactor": ratio, "mobile": False}
    )
    wide.button("Whole picture (0)")
    wide.zoom_to(scale)
    assert wide.view["scale"] == pytest.approx(scale, rel=0.01)
    box, seen = wide.canvas.bounding_box(), 0
    for x, y in LANDMARKS:
        px, py = wide.place(x, y)
        if not (box["x"] + 20 < px < box["x"] + box["width"] - 20 and box["y"] + 20 < py < box["y"] + box["height"] - 20):
            continue
        assert landmark(wide, px - box["x"], py - box["y"], scale) == pytest.approx((0, 0), abs=0.6)
        page.mouse.click(px, py)
        wide.settle()
        assert told(page, "wide")["points"] == [[x, y, 1]]
        wide.button("Clear")
        seen += 1
    assert seen
    shot(page, f"wide_{scale}_{ratio}")
    devices.send("Emulation.clearDeviceMetricsOverride")


def landmark(picture, px, py, scale):
    """How far the white square is drawn from (px, py), CSS pixels."""
    drawn = picture.drawn()
    ratio, reach = drawn.shape[1] / picture.canvas.evaluate("c => c.clientWidth"), 9 * scale
    x0, y0 = (int((p - reach) * ratio) for p in (px, py))
    part = drawn[max(0, y0) : int((py + reach) * ratio), max(0, x0) : int((px + reach) * ratio), 1] > 145
    y, x = np.argwhere(part).mean(axis=0) + 0.5
    return (x + x0) / ratio - px, (y + y0) / ratio - py


def test_a_box_is_dragged(page, wide):
    wide.button("Whole picture (0)")
    wide.drag((80, 40), (120, 80))
    assert told(page, "wide")["box"] == [80, 40, 120, 80]
    wide.button("Clear")


def test_without_a_mouse(page, cells, objects, nuclei):
    cells.canvas.focus()
    cells.press("ArrowLeft", "ArrowUp")
    truth, (x, y) = objects[3]
    fine, large = "Shift+Arrow", "Arrow"
    for axis, (less, more), goal in ((0, ("Left", "Right"), x), (1, ("Up", "Down"), y)):
        step = max(1, round(10 / cells.view["scale"]))
        for _ in range(200):
            gap = goal - place(cells)[axis]
            if not gap:
                break
            page.keyboard.press((large if abs(gap) >= step else fine) + (more if gap > 0 else less))
    assert place(cells) == (x, y)
    cells.press("Enter")
    assert told(page, "cells")["points"] == [[x, y, 1]]
    assert iou(cells.mask(nuclei.labels.shape), truth) > 0.7
    cells.press("u")
    assert told(page, "cells")["points"] == []
    cells.press("r", "s")
    assert "3 instances saved" in cells.status
    cells.press("n", "Delete")
    assert "2 instances saved" in cells.status


def place(picture):
    """Where the cursor is, as the line below the picture says."""
    words = picture.widget.locator(".ullsam-place").inner_text()
    return tuple(int(word.strip()[2:]) for word in words.split(","))


def test_a_restart_of_the_kernel_keeps_the_work(page, objects, nuclei, shot):
    command(page, "notebook:restart-run-all")
    page.locator(".jp-Dialog .jp-mod-accept").click()
    page.locator(".told-wide").wait_for(state="detached", timeout=LIMIT)
    page.locator(".told-wide").wait_for(state="attached", timeout=LIMIT)
    cells = Picture(page.locator(".of-cells .ullsam"))
    assert cells.widget.get_by_text("Saved instances (2)").is_visible()
    cells.click(*objects[4][1])
    assert iou(cells.mask(nuclei.labels.shape), objects[4][0]) > 0.7
    shot(page, "lab_restarted")
