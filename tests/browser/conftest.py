"""A real browser for these tests; without one they are skipped, or fail where ULLSAM_BROWSER is "required"."""

import os
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
import tifffile

import ullsam
from tests.browser import driver

SHOTS = Path(__file__).parent / "screenshots"
LANDMARKS = [(100, 60), (540, 290), (330, 183)]  # middles of white squares in the wide image
SETUP = """
import html
import json
import ipywidgets
import ullsam
from IPython.display import display
from ullsam.widgets import ClickToSegment

models = {MODELS}


def show(name, **options):
    demo, told = ClickToSegment(models, name, **options), ipywidgets.HTML(layout={"display": "none"})
    told.add_class(f"told-{name.split('.')[0]}")

    def tell(_):
        told.value = html.escape(json.dumps(demo.shown), quote=False)

    demo.observe(tell, "shown")
    tell(None)
    demo.add_class(f"of-{name.split('.')[0]}")
    display(told, demo)
"""
BOTH = '{"uLLSAM-tiny": ullsam.load("tiny"), "uSAM-tiny": ullsam.load("usam-tiny")}'
ONE = '{"uSAM-tiny": ullsam.load("usam-tiny")}'
COURSE = [
    """
import ullsam
from ullsam.widgets import BoxToSegment, SbrExplorer, TrainingMonitor, VlsaInspector

model, nuclei = ullsam.load("tiny"), ullsam.generate("fluorescence_nuclei", seed=3)
""",
    "SbrExplorer(nuclei.labels, image=nuclei.image)",
    "VlsaInspector(model, nuclei.image)",
    "boxes = BoxToSegment(model, nuclei.image, classes=('nucleus', 'debris'))\nboxes",
    "TrainingMonitor('run')",
]
FILLING = "\n\n".join(f"Line {i}" for i in range(30))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Keeps a picture of what a test that fails saw."""
    report = yield
    if report.failed and "chromium" in item.funcargs:
        SHOTS.mkdir(exist_ok=True)
        for number, page in enumerate(page for context in item.funcargs["chromium"].contexts for page in context.pages):
            page.screenshot(path=SHOTS / f"failed_{item.name}_{number}.png")
    return report


@pytest.fixture(scope="session")
def chromium():
    """A browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if sync_playwright is None or driver.CHROMIUM is None:
        needed = os.environ.get("ULLSAM_BROWSER") == "required"
        (pytest.fail if needed else pytest.skip)("chromium or playwright is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=driver.CHROMIUM, args=driver.SWITCHES)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shot():
    """Keeps a picture of a page."""
    SHOTS.mkdir(exist_ok=True)

    def take(page, name, **options):
        page.screenshot(path=SHOTS / f"{name}.png", **options)

    return take


@pytest.fixture(scope="session")
def nuclei():
    """A synthetic image whose objects are known."""
    return ullsam.generate("fluorescence_nuclei", seed=3)


@pytest.fixture(scope="session")
def folder(tmp_path_factory, nuclei):
    """A folder with a notebook and the images that it shows."""
    folder = tmp_path_factory.mktemp("lab")
    other = ullsam.generate("fluorescence_nuclei", seed=4)
    wide = np.full((360, 640), 40, np.uint8)
    for x, y in LANDMARKS:
        wide[y - 4 : y + 5, x - 4 : x + 5] = 250
    grey = [sample.image[..., 0].astype(np.uint16) * 200 + 1000 for sample in (other, nuclei)]
    tifffile.imwrite(folder / "stack.tif", np.stack(grey))
    tifffile.imwrite(folder / "wide.tif", wide)
    tifffile.imwrite(folder / "cells.tif", nuclei.image[..., 0])
    tifffile.imwrite(folder / "colours.tif", np.dstack([s.image[..., 0] for s in (nuclei, other, other)]))
    shows = [f"show('{name}.tif')" for name in ("cells", "stack", "wide")]
    write_notebook(folder / "try.ipynb", [SETUP.replace("{MODELS}", BOTH), *shows])
    shows = [f"show('{name}.tif', project=False)" for name in ("cells", "colours")]
    write_notebook(folder / "gestures.ipynb", [SETUP.replace("{MODELS}", BOTH), *shows])
    write_notebook(folder / "course.ipynb", COURSE)
    write_notebook(folder / "long.ipynb", [SETUP.replace("{MODELS}", ONE), "show('cells.tif', project=False)"], filling=20)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def write_notebook(path, cells, filling=0):
    """A notebook of code cells, and of so many cells of text below them."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [nbformat.v4.new_code_cell(text.strip()) for text in cells]
    cells += [nbformat.v4.new_markdown_cell(FILLING) for _ in range(filling)]
    nbformat.write(nbformat.v4.new_notebook(metadata=kernel, cells=cells), path)


@pytest.fixture(scope="session")
def lab(chromium, folder):
    """Address of JupyterLab in that folder."""
    with driver.lab(folder) as address:
        yield address


@pytest.fixture(scope="session")
def app(chromium, tmp_path_factory):
    """Address of the app."""
    with driver.app(tmp_path_factory.mktemp("app")) as address:
        yield address


@pytest.fixture(scope="session")
def objects(nuclei):
    """(mask bool (H, W), a pixel (x, y) well inside) of each whole object, the largest first."""
    labels = nuclei.labels
    border = np.unique(np.concatenate([labels[[0, -1]].ravel(), labels[:, [0, -1]].ravel()]))
    masks = [labels == number for number in np.unique(labels) if number not in border]
    return [(mask, driver.middle(mask)) for mask in sorted(masks, key=np.sum, reverse=True)]
