"""Downloads against a local server that drops the connection, refuses ranges, changes and lies."""

import hashlib
import http.server
import sys
import threading
import types

import pytest
import requests

from ullsam import InputError
from ullsam.data.sources import fetch as fetch_module
from ullsam.data.sources.fetch import Remote, download, fetch_with_torch_em, find

CONTENT = bytes(range(256)) * 4000


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.headers.get("Range"))
        mode = self.server.modes.pop(0) if self.server.modes else "whole"
        if mode == "busy":
            return self.send_error(503)
        start = int(self.headers["Range"][6:-1]) if self.headers.get("Range") and mode != "no range" else 0
        if start >= len(CONTENT):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : start + 262_200] if mode == "drop" else CONTENT[start:])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.modes, made.asked = [], []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def remote(server, sha256=None):
    return Remote(f"http://127.0.0.1:{server.server_port}/a.bin", "a.bin", sha256)


HASH = hashlib.sha256(CONTENT).hexdigest()


def test_a_dropped_download_goes_on(server, tmp_path):
    server.modes = ["drop", "drop", "drop"]
    assert download(remote(server, HASH), tmp_path).read_bytes() == CONTENT
    assert server.asked[0] is None and server.asked[1:] == ["bytes=262144-", "bytes=524288-", "bytes=786432-"]
    download(remote(server, HASH), tmp_path)
    assert len(server.asked) == 4  # it is there: nobody is asked
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_the_next_run_goes_on_where_the_last_one_failed(server, tmp_path):
    server.modes = ["drop", "busy"]
    with pytest.raises(InputError, match=r"could not be downloaded \(503.*goes on where it stopped.*yourself to .*a.bin"):
        download(remote(server, HASH), tmp_path)
    assert not (tmp_path / "a.bin").exists()
    assert download(remote(server, HASH), tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=262144-"


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.modes = ["drop", "no range"]
    assert download(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_complete_part_is_not_trusted_blindly(server, tmp_path):
    (tmp_path / ".a.bin.part").write_bytes(b"x" * len(CONTENT))  # of another version of the file
    assert download(remote(server, HASH), tmp_path).read_bytes() == CONTENT


def test_another_content_is_refused_and_leaves_nothing(server, tmp_path):
    with pytest.raises(InputError, match="another file than expected"):
        download(remote(server, "0" * 64), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_server_and_no_space(server, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"could not be downloaded \(no connection\); run the same command again"):
        download(Remote("http://127.0.0.1:9/a.bin", "a.bin"), tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch_module.pooch, "retrieve", full)
    with pytest.raises(InputError, match="No space left on device.*free some space"):
        download(remote(server), tmp_path)


def test_torch_em_fetches_each_part_in_one_step(tmp_path, monkeypatch):
    calls = []

    def get_plantseg_data(path, name, split, download):
        calls.append((name, split))
        target = __import__("pathlib").Path(path) / f"{name}_{split}"
        target.mkdir(parents=True)
        if len(calls) == 3:
            raise requests.ConnectionError("gone")

    module = types.ModuleType("torch_em.data.datasets.light_microscopy.plantseg")
    module.get_plantseg_data = get_plantseg_data
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for depth in range(1, 5):
        name = module.__name__.rsplit(".", depth)[0]
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(fetch_module.importlib.util, "find_spec", lambda name: True)
    tmp_path = tmp_path / "plantseg"
    tmp_path.mkdir()
    with pytest.raises(InputError, match="plantseg could not be fetched by torch-em .gone."):
        fetch_with_torch_em(find("plantseg"), tmp_path)
    assert not list(tmp_path.iterdir())  # half of a set is not where readers look
    assert not list(tmp_path.parent.rglob(".*partial"))
    assert fetch_with_torch_em(find("plantseg"), tmp_path)
    assert len(list(tmp_path.glob("torch_em/*/*/*_*"))) == 6 and [p.name for p in tmp_path.parent.iterdir()] == ["plantseg"]
    assert calls[3] == calls[2] and len(calls) == 7  # the part that failed is fetched again, whole parts are not
    assert not list(tmp_path.rglob(".*partial"))
    assert not fetch_with_torch_em(find("busi"), tmp_path)
