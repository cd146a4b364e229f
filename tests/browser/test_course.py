"""The course's other widgets in JupyterLab: SBR explorer, VLSA inspector, boxes, and the monitor of another run."""

import json

import pytest

from tests.browser.driver import PATIENCE, SLOWEST, open_notebook

pytestmark = pytest.mark.browser
LIMIT = SLOWEST * 1000  # ms for the answer to a gesture


@pytest.fixture(scope="module")
def run(folder):
    """A training run that goes on: `run(steps)` adds lines to its log."""

    def add(*steps):
        with (folder / "run" / "log.jsonl").open("a") as file:
            file.writelines(
                json.dumps({"step": s, "seconds": 2.0 * s, "loss": 1 / s, "dice_score": 1 - 1 / s}) + "\n" for s in steps
            )

    (folder / "run").mkdir()
    add(*range(1, 21))
    return add


@pytest.fixture(scope="module")
def page(chromium, lab, run):
    page = open_notebook(chromium, lab, "course", ".jp-CodeCell >> nth=4 >> .widget-image >> nth=0")
    yield page
    page.close()


@pytest.fixture
def cell(page):
    """The output of a cell of the notebook, from its upper edge."""

    def cell(number):
        output = page.locator(".jp-CodeCell").nth(number).locator(".jp-OutputArea-output").first
        output.wait_for(timeout=PATIENCE * 1000)
        output.evaluate("node => node.scrollIntoView({block: 'start'})")
        return output

    return cell


def says(cell, words):
    """Waits for words in the cell's output."""
    cell.get_by_text(words).first.wait_for(timeout=LIMIT)


def middle(box, x, y):
    """CSS pixels of a share of a box."""
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def watched(picture):
    """A function that waits until another picture is shown than now."""
    page, picture = picture.page, picture.element_handle()
    before = picture.get_attribute("src")
    change = "([picture, before]) => picture.src !== before"
    return lambda: page.wait_for_function(change, arg=[picture, before], timeout=LIMIT)


def test_sbr_explorer_follows_slider_and_click(page, cell, nuclei, objects, shot):
    explorer = cell(1)
    says(explorer, "erosion takes 2 steps")
    explorer.get_by_role("slider").first.focus()
    page.keyboard.press("End")
    says(explorer, "erosion takes 15 steps")
    explorer.get_by_role("button", name="Paper's settings").click()
    says(explorer, "erosion takes 2 steps")
    x, y = objects[0][1]
    height, width = nuclei.labels.shape
    picture = explorer.locator("[aria-label^='image with the chosen object'] img")
    page.mouse.click(*middle(picture.bounding_box(), (x + 0.5) / width, (y + 0.5) / height))
    says(explorer, f"Object {nuclei.labels[y, x]}: {objects[0][0].sum()} pixels")
    shot(page, "course_sbr")


def test_vlsa_inspector_follows_the_pointer(page, cell, objects, nuclei, shot):
    inspector = cell(2)
    picture = inspector.locator("[aria-label='image; point at a patch'] img")
    redrawn = watched(inspector.locator("img").last)
    page.mouse.move(*middle(picture.bounding_box(), 0.3, 0.3))
    page.mouse.move(*middle(picture.bounding_box(), 0.21, 0.3))
    says(inspector, "patch in row 9, column 6")  # patches are 8 pixels wide in this image of 256
    redrawn()
    shot(page, "course_vlsa_hover")
    inspector.get_by_role("button", name="colours (PCA)").click()
    picture.wait_for(state="hidden", timeout=LIMIT)
    shot(page, "course_vlsa_colours")
    inspector.get_by_role("button", name="masks with/without VLK").click()
    says(inspector, "Click on an object")
    x, y = objects[0][1]
    height, width = nuclei.labels.shape
    page.mouse.click(*middle(picture.bounding_box(), (x + 0.5) / width, (y + 0.5) / height))
    says(inspector, "agreement (Dice)")
    shot(page, "course_vlsa_masks")


def test_a_box_is_drawn_and_segmented(page, cell, nuclei, objects, shot):
    boxes, (y, x) = cell(3), objects[0][0].nonzero()
    height, width = nuclei.labels.shape
    area = boxes.locator("img").first.bounding_box()
    page.mouse.move(*middle(area, x.min() / width, y.min() / height))
    page.mouse.down()
    page.mouse.move(*middle(area, (x.max() + 1) / width, (y.max() + 1) / height), steps=5)
    page.mouse.up()
    says(boxes, "1 nucleus: masks of")
    shot(page, "course_boxes")


def test_the_monitor_sees_what_another_process_writes(page, cell, run, shot):
    monitor = cell(4)
    says(monitor, "Step 20; loss 0.05")
    redrawn = watched(monitor.locator("img").first)
    run(21, 22, 40)
    monitor.get_by_role("button", name="Look now").click()
    says(monitor, "Step 40; loss 0.025")
    redrawn()
    shot(page, "course_monitor")
