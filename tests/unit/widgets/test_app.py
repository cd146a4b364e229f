"""The app without a browser: uploads, results, sentences for bad files, and a server that keeps this machine's files."""

import asyncio
import http.client
import io
import os
import socket
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import cv2
import nbformat
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from jupyter_client.session import utcnow
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError

from ullsam import InputError
from ullsam.widgets import app as app_module
from ullsam.widgets.app import App, check_size, is_loopback, settings, with_current
from ullsam.widgets.files import FileExchange
from ullsam.widgets.kernels import FULL, PageKernels
from ullsam.widgets.project import locked

ROOT = Path(__file__).parents[3]


@pytest.fixture
def app(Discs):
    app = App({"discs": Discs(), "large": Discs("large", radius=9)}, limit=2)
    yield app
    app.end()


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def folder(app):
    return Path(app._folder.name)


def send(app, name, data, piece=1 << 20, size=None, purpose="image"):
    """What the browser does to upload a file; stops where it is told to."""
    files, answers = app.files, []
    files.send = lambda content, buffers=None: answers.append(content)
    files._handle_custom_msg({"kind": "begin", "name": name, "size": size or len(data), "purpose": purpose}, [])
    for start in range(0, len(data), piece):
        files._handle_custom_msg({"kind": "piece"}, [memoryview(data[start : start + piece])])
        if not answers[-1]["going"]:
            break
    return answers


def test_results_of_all_images_come_in_one_file(app):
    for shade in (60, 90):  # two uploads of the same name
        app.open("cells.png", png(np.full((40, 56), shade, np.uint8)))
        app.click.click(20, 20)
        app.click.save_instance()
    name, data = app.results()
    content = zipfile.ZipFile(io.BytesIO(data))
    assert name == "ullsam_results.zip"
    ends = ("labels.tif", "rois.zip", "overlay.png", "measurements.csv")
    assert set(content.namelist()) == {f"{n}_cells/cells_{end}" for n in (1, 2) for end in ends}
    labels = tifffile.imread(io.BytesIO(content.read("2_cells/cells_labels.tif")))
    np.testing.assert_array_equal(labels, app.click.labels)


def test_what_is_not_downloaded_yet_is_known(app):
    app.open_example()
    assert not app.files.ready and not app.files.unsaved
    app.click.click(20, 20)
    app.click.save_instance()
    assert app.files.ready and app.files.unsaved
    app.files._handle_custom_msg({"kind": "results"}, [])
    assert app.files.ready and not app.files.unsaved
    app.click.delete(1)
    assert not app.files.ready
    with pytest.raises(InputError, match="nothing to download"):
        app.results()


def test_the_result_picture_follows(app):
    app.open("cells.png", png(np.full((40, 56), 60, np.uint8)))
    before = app._result.value
    app.click.click(20, 20)
    assert app._result.value != before and "Nothing" in app._table.value
    app.click.save_instance()
    app.click.rename(1, "<b>cell")
    assert "&lt;b&gt;cell" in app._table.value


def test_a_mask_gets_the_next_number_on_free_pixels():
    labels, mask = np.array([[0, 3, 0]], np.int32), np.array([[True, True, False]])
    np.testing.assert_array_equal(with_current(labels, mask), [[4, 3, 0]])
    assert with_current(labels, None) is labels


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.png", b"nonsense", "^a.png is damaged or not an image"),
        ("a.exe", b"x", "^a.exe is not one of .png"),
        ("", b"x", "^The file is not one of"),
        ("../../etc/passwd.png", b"x", "^passwd.png is damaged"),
        ("a.tif", b"II*\0aaaa", "^a.tif cannot be used"),
        ("nan.tif", None, "^nan.tif contains NaN"),
    ],
)
def test_a_bad_file_is_one_sentence_and_the_image_before_it_stays(app, name, data, words):
    app.open_example()
    if data is None:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, np.full((8, 8), np.nan, np.float32))
        data = buffer.getvalue()
    before = app.click
    with pytest.raises(InputError, match=words) as error:
        app.open(name, data)
    assert str(folder(app)) not in str(error.value) and app.click is before
    app.click.click(20, 20)
    assert app.click.mask.any()


def test_a_label_image_is_taken_over_to_be_corrected(app):
    labels = np.zeros((40, 50), np.uint16)
    labels[2:6, 2:6], labels[20:30, 20:30] = 7, 900
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, labels)
    send(app, "labels.tif", buffer.getvalue(), purpose="labels")
    assert app.files.failed and app.files.told.startswith("There is no image yet") and not app.files.opened
    app.open("cells.png", png(np.zeros((40, 50), np.uint8)))
    send(app, "labels.tif", buffer.getvalue(), purpose="labels")
    assert app.files.opened and app.files.told == "labels.tif: 2 objects added to the saved instances."
    assert {i.number: i.area for i in app.click.instances} == {7: 16, 900: 100}
    assert (app.click.labels == labels).all()
    app.click.edit(900)
    app.click.delete(7)
    assert "cells_labels.tif" in " ".join(zipfile.ZipFile(io.BytesIO(app.results()[1])).namelist())


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("labels.png", png(np.ones((9, 9), np.uint8)), "^The label image has shape"),
        ("labels.tif", b"II*\0aaaa", "^labels.tif cannot be used"),
        ("labels.png", png(np.zeros((40, 50), np.uint8)), "has no object on free pixels"),
    ],
)
def test_a_file_that_is_no_label_image_changes_nothing(app, name, data, words):
    app.open("cells.png", png(np.zeros((40, 50), np.uint8)))
    with pytest.raises(InputError, match=words) as error:
        app.add_labels(name, data)
    assert str(folder(app)) not in str(error.value) + app.click.status and not app.click.instances


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(app, tmp_path):
    (tmp_path / "small.png").write_bytes(png(np.zeros((1000, 1100), np.uint8)))
    with pytest.raises(InputError, match="1100 x 1000 pixels and the limit is 1 megapixels"):
        check_size(tmp_path / "small.png", megapixels=1)
    tifffile.imwrite(tmp_path / "small.tif", np.zeros((1000, 1100), np.uint8))
    with pytest.raises(InputError, match="1100 x 1000"):
        check_size(tmp_path / "small.tif", megapixels=1)
    check_size(tmp_path / "small.tif", megapixels=2)


def test_no_path_of_the_server_reaches_the_page(app):
    app.open_example()
    with pytest.raises(InputError, match="Download results"):
        app.click.export()
    app.click._show(f"{folder(app)}/1/example.png is damaged", failed=True)
    assert app.click.status == "example.png is damaged"
    assert str(folder(app)) not in str(app.click.get_state()) and app.click.shown["exports"] == []


def test_words_belong_to_one_page_and_come_with_its_results(Discs):
    first, second = App({"discs": Discs()}), App({"discs": Discs()})
    for page in (first, second):
        page.open("a.png", png(np.zeros((40, 56), np.uint8)))
        page.click.click(20, 20)
    first.click.set_words("=<b>nuclei")
    assert second.click.words == "" and first.click.mask.sum() > second.click.mask.sum()
    first.click.save_instance()
    second.click.save_instance()
    assert "=&lt;b&gt;nuclei" in first._table.value and "object" in second._table.value
    table = zipfile.ZipFile(io.BytesIO(first.results()[1])).read("1_a/a_measurements.csv").decode()
    assert table.splitlines()[1].startswith("1,1,'=<b>nuclei,'=<b>nuclei,")
    first.open("a.png", png(np.zeros((40, 56), np.uint8)))
    assert first.click.words == ""
    first.end()
    second.end()


def test_sessions_are_apart_and_leave_nothing(Discs):
    first, second = App({"discs": Discs()}), App({"discs": Discs()})
    for app in (first, second):
        app.open("a.png", png(np.zeros((30, 30), np.uint8)))
    first.click.click(10, 10)
    assert second.click.mask is None and folder(first) != folder(second)
    assert os.stat(folder(first)).st_mode & 0o077 == 0, "others can read it"
    gone = folder(first)
    first.end()
    assert not gone.exists() and folder(second).exists()
    second.end()


@settings_of_hypothesis(max_examples=30)
@given(st.integers(1, 5000), st.integers(20, 700), st.sampled_from(["image", "labels"]))
def test_a_file_in_pieces_arrives_whole(size, piece, purpose):
    got = {"image": [], "labels": []}
    files = FileExchange(
        lambda *file: got["image"].append(file), lambda *file: got["labels"].append(file), lambda: None, lambda: ("", b""), 1
    )
    data = np.random.default_rng(size).bytes(size)
    answers = send(SimpleNamespace(files=files), "x.png", data, piece, purpose=purpose)
    assert got.pop(purpose) == [("x.png", data)] and [*got.values()] == [[]]
    assert [a["going"] for a in answers] == [True] * (len(answers) - 1) + [False]


def test_an_upload_over_the_limit_or_with_a_false_size_is_refused(app):
    app.files.limit = 1000  # as a changed page could set it
    assert send(app, "a.png", bytes(2_000_001))[-1] == {"kind": "next", "going": False}
    assert app.files.failed and "a.png has 2.0 MB and the limit is 2 MB" in app.files.told
    send(app, "a.png", bytes(50), size=10)
    assert "interrupted" in app.files.told
    for begin in ({"name": 3, "size": "x", "purpose": "image"}, {"name": "a.png", "size": 9, "purpose": "open_example"}):
        app.files.told = ""
        app.files._handle_custom_msg({"kind": "begin", **begin}, [])
        assert "sent no file" in app.files.told
    app.files._handle_custom_msg({"kind": "piece"}, [b"1"])
    app.files._handle_custom_msg({"kind": "open", "path": "/etc/passwd"}, [])
    send(app, "a.png", png(np.zeros((9, 9), np.uint8)))
    assert "a.png: 9 x 9 pixels" in app.files.told and not app.files.failed


@pytest.mark.parametrize("way", ["absolute", "upwards"])
def test_an_uploaded_tif_opens_no_file_of_the_server(app, tmp_path, way):
    secret = tmp_path / "secret.tif"
    tifffile.imwrite(secret, np.full((30, 40), 99, np.uint8))
    name = str(secret) if way == "absolute" else os.path.relpath(secret, folder(app) / "1")
    parts = "".join(
        f'<TiffData FirstC="{i}" IFD="0" PlaneCount="1"><UUID FileName="{file}">urn:uuid:{i}</UUID></TiffData>'
        for i, file in enumerate(["mine.ome.tif", name])
    )
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0"><Image '
        'ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="40" SizeY="30" SizeZ="1" SizeC="2" '
        f'SizeT="1">{parts}</Pixels></Image></OME>'
    )
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.full((30, 40), 7, np.uint8), description=xml.encode(), metadata=None)
    (tmp_path / "own" / "1").mkdir(parents=True)
    attack = tmp_path / "own" / "1" / "mine.ome.tif"
    attack.write_bytes(buffer.getvalue())
    assert way != "absolute" or (tifffile.imread(attack) == 99).any(), "the file does not attack"
    app.open("mine.ome.tif", buffer.getvalue())
    assert app.click.session.pages.count == 1 and not app.click.session.channels
    np.testing.assert_array_equal(app.click.session.pages.page(0), np.full((30, 40), 7))
    app.add_labels("mine.ome.tif", buffer.getvalue())
    assert [i.number for i in app.click.instances] == [7]


def test_a_file_that_cannot_be_kept_is_one_sentence(app, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    app.open_example()
    before = app.click
    monkeypatch.setattr(Path, "write_bytes", full)
    send(app, "a.png", png(np.zeros((9, 9), np.uint8)))
    assert app.files.failed and "a.png could not be kept here (No space left" in app.files.told and app.click is before
    monkeypatch.undo()
    send(app, "\u6f22" * 200 + ".png", png(np.zeros((9, 9), np.uint8)))  # a name of more bytes than a disk takes
    assert not app.files.failed and "9 x 9 pixels" in app.files.told


def test_what_a_killed_server_left_is_removed_and_that_of_a_running_one_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(app_module.tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("ullsam_app_dead", "ullsam_app_running", "ullsam_app_starting", "other"):
        (tmp_path / name / "ullsam_x").mkdir(parents=True)
        if name != "ullsam_app_starting":
            os.utime(tmp_path / name, (0, 0))
    with locked(tmp_path / "ullsam_app_running"):
        app_module.remove_leftovers()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "ullsam_app_running", "ullsam_app_starting"]


def test_any_label_numbers_can_be_downloaded(app):
    labels, buffer = np.zeros((40, 50), np.uint32), io.BytesIO()
    labels[2:6, 2:6], labels[20:30, 20:30] = 3, 2**31 - 1
    tifffile.imwrite(buffer, labels)
    app.open("cells.png", png(np.zeros((40, 50), np.uint8)))
    app.add_labels("labels.tif", buffer.getvalue())
    app.click.click(40, 10)
    app.click.save_instance()
    content = zipfile.ZipFile(io.BytesIO(app.results()[1]))
    labels = tifffile.imread(io.BytesIO(content.read("1_cells/cells_labels.tif")))
    assert set(np.unique(labels)) == {0, 1, 2, 3} and (labels[20:30, 20:30] == 2).all()
    app.open_example()  # and another image can be opened


def test_the_server_takes_so_many_pages_and_no_more(monkeypatch):
    class Slow(AsyncMappingKernelManager):
        async def start_kernel(self, kernel_id):
            await asyncio.sleep(0.01)
            if len(started) == 1:
                raise OSError
            started.append(kernel_id)
            return kernel_id

    async def several():
        return await asyncio.gather(*[kernels.start_kernel() for _ in range(16)], return_exceptions=True)

    started = []
    monkeypatch.setattr(AsyncMappingKernelManager, "start_kernel", Slow.start_kernel)
    kernels = PageKernels(limit=3)
    monkeypatch.setattr(kernels, "list_kernel_ids", lambda: list(started))
    answers = asyncio.run(several())
    refused = [a for a in answers if isinstance(a, HTTPError)]
    assert len(refused) == 13 and {(a.status_code, a.reason) for a in refused} == {(503, FULL)} and "try again" in FULL
    assert len(started) == 1 and sum(isinstance(a, OSError) for a in answers) == 2
    started[:] = ["a", "b"]  # a place whose kernel could not be started is free again
    assert sum(isinstance(a, str) for a in asyncio.run(several())) == 1
    assert settings("127.0.0.1", 1, 8, False).Voila.tornado_settings == {"allow_remote_access": False}
    assert settings("0.0.0.0", 1, 8, False).Voila.tornado_settings == {"allow_remote_access": True}


def test_a_page_that_has_gone_frees_its_place(monkeypatch):
    def kernel(seconds, state="idle"):
        past, spec = utcnow() - timedelta(seconds=seconds), SimpleNamespace(metadata={})
        return SimpleNamespace(last_activity=past, execution_state=state, kernel_spec=spec, kernel_name="python3")

    async def look():
        for kernel_id in list(kernels._kernels):
            await kernels.cull_kernel_if_idle(kernel_id)

    async def end(kernel_id):
        ended.append(kernel_id)
        del kernels._kernels[kernel_id]

    ended, kernels = [], PageKernels(cull_idle_timeout=1800, cull_connected=True)
    monkeypatch.setattr(kernels, "shutdown_kernel", end)
    kernels._kernels |= {
        "never came": kernel(70),
        "still coming": kernel(30),
        "computing": kernel(900, "busy"),
        "here": kernel(900),
        "asleep": kernel(1900),
        "just left": kernel(900),
    }
    kernels._kernel_connections |= {"here": 1, "asleep": 1, "just left": 1}
    kernels.notify_disconnect("just left")
    asyncio.run(look())
    assert ended == ["never came", "asleep"]
    kernels._kernels["just left"].last_activity -= timedelta(seconds=70)
    asyncio.run(look())
    assert ended == ["never came", "asleep", "just left"]
    assert kernels.abandoned + settings("127.0.0.1", 1, 8, False).PageKernels.cull_interval < 100


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.3", False),
        ("example.org", False),
    ],
)
def test_which_addresses_are_this_machines_own(host, own):
    assert is_loopback(host) == own


@contextmanager
def served(folder, *options):
    """Port of the app, without a page open."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log, command = folder / "log", [sys.executable, "-m", "ullsam", "app", "--port", str(port), *map(str, options)]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    for _ in range(480):
        if "running at" in log.read_text():
            break
        assert process.poll() is None, log.read_text()
        time.sleep(0.25)
    yield port
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("app")) as port:
        yield port


def test_pages_that_are_asked_for_at_once_do_not_pass_the_limit(tmp_path):
    def get(_):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("GET", "/")
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, FULL in body, "the answer is 42" in body

    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [nbformat.v4.new_code_cell("print('the answer is', 6 * 7)")]
    nbformat.write(nbformat.v4.new_notebook(metadata=kernel, cells=cells), tmp_path / "page.ipynb")
    with served(tmp_path, "--notebook", tmp_path / "page.ipynb", "--sessions", 3) as port, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(get, range(16)))
    assert sorted(answers) == [(200, False, True)] * 3 + [(503, True, False)] * 13


UP = "%2e%2e/" * 12
PATHS = [
    "/voila/files/app.ipynb",
    "/voila/files/../pyproject.toml",
    "/voila/files//etc/passwd",
    f"/voila/files/{UP}etc/passwd",
    "/etc/passwd",
    "/files/etc/passwd",
    "/tree",
    "/lab",
    "/api/contents",
    "/api/contents/app.ipynb",
    "/api/kernels",
    "/api/sessions",
    "/api/terminals",
    "/terminals/websocket/1",
    "/voila/tree",
    "/voila/render/app.ipynb",
    f"/voila/static/{UP}etc/passwd",
    f"/voila/templates/lab/static/{UP}etc/passwd",
    f"/voila/templates/{UP}etc/static/passwd",
    f"/voila/labextensions/{UP}etc/passwd",
    f"/voila/api/themes/{UP}etc/passwd",
    "/voila/static//etc/passwd",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_of_the_server_is_reachable(server, path):
    for _ in range(2):  # a redirect leads to what is forbidden
        connection = http.client.HTTPConnection("127.0.0.1", server, timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        body, path = answer.read(), answer.getheader("Location")
        connection.close()
        assert b"root:" not in body and b"nbformat" not in body and b"[project]" not in body
        if answer.status != 302:
            break
        path = urlsplit(path).path
    assert answer.status in (400, 403, 404, 405, 500), answer.status


def test_another_name_of_this_machine_is_refused(server):
    connection = http.client.HTTPConnection("127.0.0.1", server, timeout=30)
    connection.request("GET", "/", headers={"Host": "elsewhere.example"})
    assert connection.getresponse().status == 403
