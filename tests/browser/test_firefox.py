"""The app in Firefox: click, mask, a point outside, save, download; skipped where there is no Firefox."""

import base64
import io
import json
import time
import zipfile

import pytest
import tifffile

from tests.browser import driver
from tests.browser.conftest import SHOTS
from tests.browser.driver import at_pixels, decoded, iou
from tests.browser.firefox import FIREFOX, firefox

pytestmark = [pytest.mark.browser, pytest.mark.skipif(FIREFOX is None, reason="Firefox is not installed")]
CANVAS = "document.querySelector('.ullsam-canvas')"
IDLE = f"document.querySelector('.ullsam')?.getAttribute('aria-busy') === 'false' && {CANVAS}.dataset.painted"


def button(page, name):
    """Presses a button by its words."""
    page.evaluate(f"[...document.querySelectorAll('button')].find(b => b.textContent === {json.dumps(name)}).click()")


def settle(page):
    time.sleep(0.2)
    page.wait(IDLE)
    time.sleep(0.3)  # a layer is decoded after the answer


def click(page, x, y, **options):
    """Clicks on an image pixel."""
    corner = page.evaluate(
        f"(b => [b.left + {CANVAS}.clientLeft, b.top + {CANVAS}.clientTop])({CANVAS}.getBoundingClientRect())"
    )
    view = json.loads(page.evaluate(f"{CANVAS}.dataset.view"))
    at = [corner[i] + view[a] + (p + 0.5) * view["scale"] for i, (a, p) in enumerate((("x", x), ("y", y)))]
    page.click(*at, **options)
    settle(page)


def mask(page, size):
    """The current mask as it is seen, bool (H, W)."""
    drawn, view, width = page.evaluate(f"[{CANVAS}.toDataURL('image/png'), {CANVAS}.dataset.view, {CANVAS}.clientWidth]")
    colour = at_pixels(decoded(drawn), json.loads(view), width, size)
    return colour[..., 0] - colour[..., 2] > driver.TINT


def downloaded(folder):
    """The label image in the results, once Firefox has written them."""
    file = folder / "ullsam_results.zip"
    for _ in range(driver.SLOWEST * 5):
        if file.exists() and file.stat().st_size and not list(folder.glob("*.part")):
            break
        time.sleep(0.2)
    with zipfile.ZipFile(file) as content:
        return tifffile.imread(io.BytesIO(content.read(next(n for n in content.namelist() if n.endswith("labels.tif")))))


def test_the_app_in_firefox(app, tmp_path, nuclei, objects):
    size, (truth, at) = nuclei.labels.shape, objects[1]
    with firefox(tmp_path) as page:
        page.size(1280, 720)
        page.goto(app)
        page.wait("[...document.querySelectorAll('button')].some(b => b.textContent === 'Try the example')")
        button(page, "Try the example")
        page.wait(CANVAS)
        page.evaluate("document.querySelector('.ullsam-files').scrollIntoView()")
        settle(page)
        click(page, *at)
        assert iou(mask(page, size), truth) > 0.7
        x, y = objects[0][1]
        click(page, x, y, button=2)
        assert not mask(page, size)[y, x] and iou(mask(page, size), truth) > 0.6
        page.press("u")
        settle(page)
        page.press("s")
        settle(page)
        assert "1 instance saved" in page.evaluate("document.querySelector('.ullsam-status').textContent")
        SHOTS.mkdir(exist_ok=True)
        (SHOTS / "firefox_app.png").write_bytes(base64.b64decode(page.screenshot()))
        button(page, "Download results")
        labels = downloaded(tmp_path)
        assert labels.max() == 1 and iou(labels == 1, truth) > 0.7
