"""The app as Voila serves it: upload, click, save, download, and two people who do not meet."""

import io
import zipfile

import cv2
import numpy as np
import pytest
import tifffile

from tests.browser.driver import PATIENCE, Picture, iou

pytestmark = pytest.mark.browser
LIMIT = PATIENCE * 1000  # ms, for what waits for a kernel


@pytest.fixture(scope="module")
def visit(chromium, app):
    """Opens the app as another person each time."""
    contexts = []

    def visit(**options):
        contexts.append(chromium.new_context(**{"viewport": {"width": 1280, "height": 720}, **options}))
        page = contexts[-1].new_page()
        page.goto(app, timeout=LIMIT)
        page.get_by_role("button", name="Choose an image").wait_for(timeout=LIMIT)
        return page

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def page(visit):
    return visit()


def upload(page, name, data):
    page.locator(".ullsam-files input").set_input_files({"name": name, "mimeType": "", "buffer": data})


def told(page, words):
    line = page.locator(".ullsam-told").filter(has_text=words)
    line.wait_for(timeout=LIMIT)
    return line.inner_text()


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def download(page):
    with page.expect_download() as started:
        page.get_by_role("button", name="Download results").click()
    return zipfile.ZipFile(io.BytesIO(started.value.path().read_bytes()))


def test_upload_click_save_and_download(page, nuclei, objects, shot):
    shot(page, "app_start")
    upload(page, "my cells.png", png(nuclei.image))
    told(page, "my cells.png: 256 x 256 pixels")
    picture, (truth, at) = Picture(page.locator(".ullsam")), objects[1]
    picture.click(*at)
    assert iou(picture.mask(truth.shape), truth) > 0.7
    shot(page, "app_click")
    picture.button("Save instance")
    picture.click(*objects[0][1])
    picture.button("Save instance")
    shot(page, "app_saved")
    content = download(page)
    names = {name.split("/")[1] for name in content.namelist()}
    assert names == {f"my cells_{end}" for end in ("labels.tif", "rois.zip", "overlay.png", "measurements.csv")}
    labels = tifffile.imread(io.BytesIO(content.read(next(n for n in content.namelist() if n.endswith(".tif")))))
    assert iou(labels == 1, truth) > 0.7 and iou(labels == 2, objects[0][0]) > 0.7


def test_the_model_can_be_chosen(page, nuclei, objects):
    picture = Picture(page.locator(".ullsam"))
    picture.widget.get_by_label("Model").select_option("uSAM-tiny")
    picture.settle()
    picture.click(*objects[2][1])
    assert iou(picture.mask(nuclei.labels.shape), objects[2][0]) > 0.5


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("broken.png", b"\x89PNG and no more", "broken.png is damaged or not an image"),
        ("notes.txt", b"hello", "notes.txt is not one of .png"),
        ("empty.tif", b"", "empty.tif is empty"),
        ("large.tif", bytes(50_000_001), "large.tif has 50.0 MB and the limit is 50 MB"),
    ],
)
def test_a_bad_file_gets_a_sentence_and_the_page_goes_on(page, nuclei, tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    page.locator(".ullsam-files input").set_input_files(tmp_path / name)
    assert "/tmp" not in told(page, words)
    upload(page, "again.png", png(nuclei.image))
    told(page, "again.png: 256 x 256 pixels")
    assert page.locator(".ullsam-canvas").is_visible()


def test_a_file_of_many_pieces_arrives_whole(page):
    noise = np.random.default_rng(0).integers(0, 65535, (2500, 2400), np.uint16)  # 12 MB, above what one message may hold
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, noise)
    upload(page, "noise.tif", buffer.getvalue())
    told(page, "noise.tif: 2400 x 2500 pixels")


def test_a_label_image_is_corrected_and_handed_back(page, nuclei):
    upload(page, "cells.png", png(nuclei.image))
    told(page, "cells.png: 256 x 256 pixels")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, nuclei.labels.astype(np.uint16))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Correct a label image").click()
    chooser.value.set_files({"name": "labels.tif", "mimeType": "", "buffer": buffer.getvalue()})
    told(page, f"labels.tif: {len(np.unique(nuclei.labels)) - 1} objects added to the saved instances.")
    picture = Picture(page.locator(".ullsam"))
    picture.button("Delete instance 1, object")
    content = download(page)
    name = next(n for n in reversed(content.namelist()) if n.endswith("/cells_labels.tif"))
    labels = tifffile.imread(io.BytesIO(content.read(name)))
    assert (labels == np.where(nuclei.labels == 1, 0, nuclei.labels)).all()


def test_two_people_stay_separate(page, visit, nuclei, objects, shot):
    other = visit()
    upload(page, "cells.png", png(nuclei.image))
    upload(other, "cells.png", png(nuclei.image[:200, :240]))
    told(page, "cells.png: 256 x 256 pixels")
    told(other, "cells.png: 240 x 200 pixels")
    first, second = (Picture(p.locator(".ullsam")) for p in (page, other))
    first.click(*objects[1][1])
    assert iou(first.mask(nuclei.labels.shape), objects[1][0]) > 0.7
    assert not second.mask((200, 240)).any()
    second.click(*objects[4][1])
    second.button("Save instance")
    assert "0 instances saved" in first.status and "1 instance saved" in second.status
    assert "cells_labels.tif" in " ".join(download(other).namelist())
    shot(other, "app_other")


def test_a_phone(visit, nuclei, objects, shot):
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, device_scale_factor=2)
    shot(page, "phone_start")
    upload(page, "cells.png", png(nuclei.image))
    picture = Picture(page.locator(".ullsam"))
    picture.canvas.evaluate("c => c.scrollIntoView({block: 'center'})")
    page.touchscreen.tap(*picture.place(*objects[1][1]))
    picture.settle()
    assert iou(picture.mask(nuclei.labels.shape), objects[1][0]) > 0.7
    page.locator(".ullsam-files").evaluate("node => node.scrollIntoView({block: 'start'})")
    shot(page, "phone_click")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
