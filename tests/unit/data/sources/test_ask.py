"""Captions from a server: one that answers, fails, stalls, repeats itself, cuts off and refuses."""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from ullsam import Corpus, InputError
from ullsam.cli import main
from ullsam.data.io import write_labels
from ullsam.data.sources.ask import PROMPT, Server, ask, caption_folder, picture_url


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, dict(self.headers), body))
            mode = self.server.modes.pop(0) if self.server.modes else self.server.always
            self.server.most = max(self.server.most, len(self.server.busy) + 1)
            self.server.busy.append(1)
        try:
            self.reply(mode, body)
        finally:
            with self.server.lock:
                self.server.busy.pop()

    def reply(self, mode, body):
        content = body["messages"][0]["content"][0]["image_url"]["url"].split(",")[1]
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)
        text, reason = f"grey level {picture[0, 0, 0]} of\n{picture.shape[:2]}.", "stop"
        if isinstance(mode, int):
            return self.send_error(mode)
        if mode == "stall":
            time.sleep(1.0)
            return
        if mode == "slow":
            time.sleep(0.05)
        if mode == "empty":
            text = " "
        if mode == "cut":
            text, reason = "A whole sentence. Half a sen", "length"
        answer = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]}
        data = b"{not json" if mode == "garbage" else json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if mode == "drip":  # a byte now and then, for ever
            for byte in data:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
            return
        self.wfile.write(data)

    def log_message(self, *args):
        pass


class Listener(http.server.ThreadingHTTPServer):
    def handle_error(self, request, address):
        """A client that hung up is no error here."""


@pytest.fixture
def server():
    made = Listener(("127.0.0.1", 0), Handler)
    made.modes, made.always, made.asked, made.busy, made.most, made.lock = [], "answer", [], [], 0, threading.Lock()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def at(server, **changes):
    values = {"wait": 0.01, "timeout": 5.0, "key": "secret"} | changes
    return Server(f"http://127.0.0.1:{server.server_port}/v1", **values)


@pytest.fixture
def folder(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / "cells" / part).mkdir(parents=True)
    for i in range(6):
        cv2.imwrite(str(tmp_path / "cells" / "images" / f"{i}.png"), np.full((20, 30), 10 * i, np.uint8))
        write_labels(tmp_path / "cells" / "masks" / f"{i}.png", np.ones((20, 30), np.int32))
    return tmp_path / "cells"


def rows(folder):
    return [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]


def test_every_image_gets_its_own_caption(server, folder):
    assert caption_folder(folder, at(server)) == 6
    found = {row["file"]: row["caption"] for row in rows(folder)}
    assert found == {f"{i}.png": f"grey level {10 * i} of (20, 30)." for i in range(6)}
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "Qwen2.5-VL-72B-Instruct" and body["messages"][0]["content"][1]["text"] == PROMPT
    assert Corpus(folder).captions == found
    caption_folder(folder, at(server))
    assert len(server.asked) == 6  # nobody is asked twice


def test_failures_are_tried_again(server, folder):
    server.modes = [500, 503, 429, "garbage", "empty"]
    caption_folder(folder, at(server), workers=1)
    assert len(server.asked) == 11 and len({row["file"] for row in rows(folder)}) == 6


@pytest.mark.parametrize("mode", ["stall", "drip"])
def test_a_stalled_answer_is_asked_again(server, folder, mode):
    server.modes = [mode]
    address = picture_url(folder / "images" / "3.png", 1024)
    assert ask(at(server, timeout=0.3), address, PROMPT) == "grey level 30 of (20, 30)."
    assert len(server.asked) == 2


def test_what_was_answered_stays_when_the_server_dies(server, folder):
    server.modes, server.always = ["answer"] * 2, 500
    with pytest.raises(InputError, match=r"gave no answer in 3 tries \(status 500.*goes on where it stopped"):
        caption_folder(folder, at(server, tries=3), workers=1)
    assert len(rows(folder)) == 2 and len(server.asked) == 5  # after the first failure nobody is asked any more
    with (folder / "captions.jsonl").open("a") as file:
        file.write('{"file": "2.png", "cap')  # the machine died within a line
    server.always = "answer"
    assert caption_folder(folder, at(server)) == 6
    assert sorted(row["file"] for row in rows(folder)) == [f"{i}.png" for i in range(6)] and len(server.asked) == 9


def test_a_refusal_is_not_repeated(server, folder):
    server.always = 404
    with pytest.raises(InputError, match="refuses the question .status 404.*check --base-url, --model"):
        caption_folder(folder, at(server), workers=1)
    assert len(server.asked) == 1 and not (folder / "captions.jsonl").exists()  # no empty file is left


def test_questions_run_at_the_same_time_but_not_too_many(server, folder):
    server.always = "slow"
    caption_folder(folder, at(server), workers=3)
    assert 2 <= server.most <= 3


def test_a_cut_answer_ends_with_its_last_sentence(server, folder):
    server.modes = ["cut"]
    assert ask(at(server), picture_url(folder / "images" / "0.png", 1024), PROMPT) == "A whole sentence."


def test_pictures_are_sent_small(server, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((300, 600), np.uint16))
    assert ask(at(server), picture_url(tmp_path / "a.png", 100), PROMPT) == "grey level 0 of (50, 100)."


def test_command_line(server, folder, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "from outside")
    address = f"http://127.0.0.1:{server.server_port}/v1/"
    assert main(["caption", str(folder), "--base-url", address, "--model", "other"]) == 0
    assert "6 images have a caption" in capsys.readouterr().out
    assert server.asked[0][1]["Authorization"] == "Bearer from outside" and server.asked[0][2]["model"] == "other"
    (folder / "captions.jsonl").unlink()
    assert main(["caption", str(folder), "--base-url", "localhost:1"]) == 2
    assert "is no web address" in capsys.readouterr().err
    for option, value in (("--workers", "0"), ("--timeout", "0")):
        assert main(["caption", str(folder), "--base-url", address, option, value]) == 2
        assert f"{option} is 0" in capsys.readouterr().err


# ---------------------------------------------------------------- several processes


def test_parts_of_a_run_that_was_stopped_are_taken_over(server, folder):
    (folder / "captions.1.part").write_text(json.dumps({"file": "4.png", "caption": "kept"}) + "\n" + '{"file": "5.p')
    caption_folder(folder, at(server))
    found = {row["file"]: row["caption"] for row in rows(folder)}
    assert len(rows(folder)) == 6 and found["4.png"] == "kept" and found["5.png"] == "grey level 50 of (20, 30)."
    assert len(server.asked) == 5 and not list(folder.glob("*.part"))


@pytest.mark.slow
def test_two_processes_give_the_captions_of_one(server, folder):
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "ullsam"]
    words += ["caption", str(folder), "--base-url", at(server).base_url, "--workers", "1"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("6 images have a caption") == 1 and len(server.asked) == 6
    assert Corpus(folder).captions == {f"{i}.png": f"grey level {10 * i} of (20, 30)." for i in range(6)}
    assert len(rows(folder)) == 6 and not list(folder.glob("*.part"))
