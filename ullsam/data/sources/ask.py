"""Stage-2 captions: a large vision-language model on an OpenAI-compatible server (vLLM and others) describes every image."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

import cv2
from accelerate import PartialState

from ullsam.data.corpus import Corpus, Record
from ullsam.data.io import append_line, png, read_image, read_lines, to_rgb8, write_atomic
from ullsam.errors import InputError

# The paper's instruction to Qwen2.5-VL-72B (Appendix A, Figure 8), word for word: other words give other captions.
PROMPT = Path(__file__).with_name("ask_prompt.txt").read_text(encoding="utf-8").strip()
AGAIN = (408, 409, 425, 429)  # statuses that a later try may change, beside 5xx


@dataclass(frozen=True)
class Server:
    """Where and how to ask."""

    base_url: str  # ends in /v1, for example http://localhost:8000/v1
    model: str = "Qwen2.5-VL-72B-Instruct"
    tries: int = 6
    wait: float = 1.0  # seconds before the second try; doubled for each further one
    timeout: float = 180.0  # seconds without an answer
    max_tokens: int = 256
    temperature: float = 0.0
    longest: int = 1024  # side of the picture that is sent, in pixels
    # of the server, where it wants one; from outside, so that it is never part of a command line
    key: str = field(default_factory=lambda: os.environ.get("OPENAI_API_KEY", ""), repr=False)

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise InputError(f"--base-url {self.base_url} is no web address; give one such as http://localhost:8000/v1.")
        if self.timeout <= 0:
            raise InputError(f"--timeout is {self.timeout:g}; give seconds, more than 0.")


def caption_folder(
    folder: str | Path,
    server: Server,
    split: str | None = None,
    workers: int = 8,
    say: Callable[[str], None] | None = None,
    state: PartialState | None = None,
) -> int:
    """Adds a caption of every image of a corpus to its captions.jsonl; images that have one are not asked again.

    Processes of `accelerate launch` share the images; each writes a part of its own, and the first puts them together.
    Returns the number of captions of the chosen images.

    Args:
        folder: a corpus; server: what is asked; split: only this split; workers: questions under way at once;
            say: gets a line every 100 captions; state: this process among its fellows (default: as accelerate knows it).

    Raises:
        InputError: the server refuses, or keeps failing; what was answered stays, and the next run goes on from there.
    """
    if workers < 1:
        raise InputError(f"--workers is {workers}; give 1 or more.")
    corpus, path, state = Corpus(folder), Path(folder) / "captions.jsonl", state or PartialState()
    _merge_parts(path, state)
    done = {row["file"] for row in read_lines(path, mend=True)}
    records = corpus.select(split)
    missing = [record for record in records if record.file not in done][state.process_index :: state.num_processes]
    part = path.with_suffix(f".{state.process_index}.part") if state.num_processes > 1 else path
    try:
        with part.open("a", encoding="utf-8") as file:
            for number, (record, text) in enumerate(_answers(missing, server, workers), 1):
                append_line(file, {"file": record.file, "caption": text, "model": server.model})
                if say and state.is_main_process and number % 100 == 0:
                    say(f"{number} of {len(missing)} captions")
    finally:
        if part.is_file() and not part.stat().st_size:
            part.unlink()
    _merge_parts(path, state)
    return len(records)


def _merge_parts(path: Path, state: PartialState) -> None:
    """Moves the captions of all processes, also those of a run that was stopped, into the one file."""
    state.wait_for_everyone()
    parts = sorted(path.parent.glob("captions.[0-9]*.part"))
    if parts and state.is_main_process:
        rows = {row["file"]: row for file in (path, *parts) for row in read_lines(file)}
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values())
        write_atomic(path, lines.encode("utf-8"))
        for part in parts:
            part.unlink()
    state.wait_for_everyone()


def _answers(records: Sequence[Record], server: Server, workers: int) -> Iterator[tuple[Record, str]]:
    """Every record with its answer the moment it comes; after one that fails for good no further question is begun."""
    stop, problem = threading.Event(), None

    def work(record: Record) -> str | None:
        try:
            return None if stop.is_set() else ask(server, picture_url(record.image_path, server.longest), PROMPT, stop)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(max_workers=workers) as pool:
        jobs = {pool.submit(work, record): record for record in records}
        try:
            for job in as_completed(jobs):
                problem = problem or job.exception()
                if not job.exception() and job.result() is not None:
                    yield jobs[job], job.result()  # also what was under way when another question failed
        finally:
            stop.set()
    if problem is not None:
        raise problem


def picture_url(path: Path, longest: int) -> str:
    """An image file as 8-bit RGB in a data: address, made smaller where a side exceeds `longest` pixels."""
    image = to_rgb8(read_image(path), str(path))
    scale = longest / max(image.shape[:2])
    if scale < 1:
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return "data:image/png;base64," + base64.b64encode(png(image)).decode("ascii")


def ask(server: Server, picture: str, prompt: str, stop: threading.Event | None = None) -> str:
    """One question about one picture, asked again with growing pauses while the server fails or stalls.

    An InputError says that the server refuses the question, or that the last try failed.
    """
    stop, problem = stop or threading.Event(), ""
    for number in range(server.tries):
        if number and stop.wait(server.wait * 2 ** (number - 1)):
            break
        try:
            return _ask_once(server, picture, prompt)
        except urllib.error.HTTPError as error:
            problem = f"status {error.code} {error.reason}"
            if error.code < 500 and error.code not in AGAIN:
                problem += ": " + " ".join(error.read(300).decode("utf-8", "replace").split())
                remedy = "check --base-url, --model and the key"
                raise InputError(f"{server.base_url} refuses the question ({problem}); {remedy}.") from error
        except (OSError, HTTPException, ValueError, KeyError, IndexError, TypeError) as error:  # no, or no usable, answer
            problem = str(error) or type(error).__name__
    remedy = "start the server and run the same command again, it goes on where it stopped"
    raise InputError(f"{server.base_url} gave no answer in {server.tries} tries ({problem}); {remedy}.")


def _ask_once(server: Server, picture: str, prompt: str) -> str:
    """The text of the answer, on one line; it must not be empty, and one that was cut off ends with its last sentence."""
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": prompt}]
    options = {"model": server.model, "max_tokens": server.max_tokens, "temperature": server.temperature}
    body = json.dumps(options | {"messages": [{"role": "user", "content": content}]}).encode("utf-8")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {server.key}"} if server.key else {})
    request = urllib.request.Request(server.base_url.rstrip("/") + "/chat/completions", body, headers)
    received, deadline = b"", time.monotonic() + server.timeout
    with urllib.request.urlopen(request, timeout=server.timeout) as answer:
        while part := answer.read1(1 << 16):
            received += part
            if time.monotonic() > deadline:  # a server may also stall by sending a byte now and then
                raise TimeoutError(f"no whole answer in {server.timeout:g} s")
    choice = json.loads(received)["choices"][0]
    text = " ".join(choice["message"]["content"].split())
    if not text:
        raise ValueError("an empty answer")
    return (text[: text.rfind(".") + 1] or text) if choice.get("finish_reason") == "length" else text
