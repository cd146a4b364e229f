"""The click widget where cells that are not seen leave the page, and in Notebook 7; the models here are small to load."""

import pytest

from tests.browser import driver
from tests.browser.driver import PATIENCE, Picture, command, iou, wait_for_kernel

pytestmark = pytest.mark.browser
LIMIT = PATIENCE * 1000  # ms, for what waits for a kernel
SEEN = "c => { const b = c.getBoundingClientRect(); return b.bottom > 0 && b.top < innerHeight && b.width > 0; }"
RAN = "() => jupyterapp.shell.currentWidget.content.model.cells.get(1).outputs.length > 0"


@pytest.fixture(scope="module", params=["lab", "notebook"])
def page(request, chromium, folder):
    """The long notebook, run: in JupyterLab with cells in the page only while they are seen, or in Notebook 7."""
    program = request.param
    address = {"lab": "lab/tree", "notebook": "notebooks"}[program]
    with driver.lab(folder, program, windowing="full") as server:
        page = chromium.new_page(viewport={"width": 1280, "height": 720})
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(f"{server}/{address}/long.ipynb", timeout=LIMIT)
        wait_for_kernel(page)
        command(page, "notebook:run-all-cells")  # it ends at the last cell, far below the widget
        page.wait_for_function(RAN, timeout=LIMIT)
        scroll(page, 1)
        page.locator(".told-cells").wait_for(state="attached", timeout=LIMIT)
        yield page
        page.close()


def scroll(page, cell):
    page.evaluate("i => jupyterapp.shell.currentWidget.content.scrollToItem(i, 'start')", cell)
    page.wait_for_timeout(500)


def test_click_leave_and_come_back(page, objects, nuclei, shot, request):
    scroll(page, 1)
    size, (truth, at) = nuclei.labels.shape, objects[1]
    cells = Picture(page.locator(".of-cells .ullsam"))
    cells.zoom_to(1.5)
    cells.click(*at)
    before, view = cells.mask(size), cells.view
    shot(page, f"front_{request.node.callspec.params['page']}")
    scroll(page, 20)
    assert not page.evaluate(f"() => [...document.querySelectorAll('.ullsam-canvas')].some({SEEN})")
    scroll(page, 1)
    cells = Picture(page.locator(".of-cells .ullsam"))
    assert cells.view == pytest.approx(view)
    assert iou(cells.mask(size), before) > 0.98
    cells.button("Whole picture (0)")
    assert iou(cells.mask(size), truth) > 0.7
    cells.press("s")
    assert "1 instance saved" in cells.status
