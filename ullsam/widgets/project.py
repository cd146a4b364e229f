"""The project file of a click session: every saved instance with its prompts and pixels, in one JSON file."""

from __future__ import annotations

import base64
import json
import math
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from ullsam.errors import InputError, reason
from ullsam.files import write_json
from ullsam.widgets.instances import Instance, Region, State, file_name
from ullsam.widgets.pages import Pages, is_index

FORMAT, VERSION = "ullsam project", 1
SUFFIX = ".ullsam.json"
LONGEST = 238  # bytes of an image's name to which the suffix, and that of a file that is being written, can be added


def save_project(path: str | Path, state: State, image_sha: str, image_name: str = "") -> None:
    """Writes the saved instances, and where the session stands, in one step: a reader sees the old file or the new one.

    Args:
        path: the file, by custom `<image file>.ullsam.json`.
        image_sha: fingerprint of the image, see `Pages.sha`; image_name: for people who read the file.

    Raises:
        InputError: the file cannot be written.
    """
    image = {"name": file_name(image_name), "sha256": image_sha}
    content = {"format": FORMAT, "version": VERSION, "image": image}
    content |= {name: getattr(state, name) for name in ("model", "page", "channel")}
    write_json(Path(path).resolve(), content | {"instances": [_to_json(i) for i in state.instances]})  # a link stays one


def load_project(path: str | Path, pages: Pages) -> State:
    """Model, page, channel and instances from a project of this image.

    Raises:
        InputError: the file cannot be read, or is damaged, of a newer version, or of another image.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(values, dict) or values.get("format") != FORMAT or type(values.get("version")) is not int:
        raise InputError(f"{path} is no project file of this widget; name another file with project=...")
    if values["version"] > VERSION:
        versions = f"version {values['version']} of the project format and this ullsam reads up to {VERSION}"
        raise InputError(f"{path} has {versions}; install a newer ullsam.")
    try:
        image = values["image"]
        other, state = image.get("name"), _state(values, pages) if image["sha256"] == pages.sha else None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
        raise _damaged(path, error) from error
    if state is None:
        other = f"another image{f' ({other})' if other else ''}"
        raise InputError(f"{path} is the project of {other}; give the image it was made for, or another project file.")
    return state


class Autosave:
    """The project file of one session; it never writes over what another session has saved meanwhile.

    Args:
        pages: the image.
        project: path of the file; None for the one beside an image that is a file; False for none.

    Raises:
        InputError: the folder of the file does not exist or cannot be written.
    """

    def __init__(self, pages: Pages, project: str | Path | bool | None = None):
        if project is None and pages.path is not None:
            name = pages.path.name
            project = pages.path.with_name((name if len(os.fsencode(name)) <= LONGEST else file_name(name)) + SUFFIX)
        self.path = Path(project) if project else None
        self._pages = pages
        self._known = self._stamp()
        if self.path is not None and not os.access(self.path.parent, os.W_OK):
            problem = f"The folder {self.path.parent} cannot be written, so your work could not be kept there"
            raise InputError(f"{problem}; name a file with project=..., or give project=False to keep none.")

    def continued(self, state: State, models: list[str]) -> State:
        """The state in which an earlier session left the project, with one of the `models`; `state` without a project."""
        if self._known is None:
            return state
        kept = load_project(self.path, self._pages)
        return replace(kept, vlk=state.vlk, model=kept.model if kept.model in models else state.model)

    def write(self, state: State) -> None:
        """Saves the project; `InputError` where the file cannot be written, or another session has changed it."""
        if self.path is None:
            return
        with locked(self.path.parent):
            if self._stamp() not in (self._known, None):
                remedy = "open the image again to go on from there"
                raise InputError(f"{self.path} was changed by another session meanwhile; {remedy}.")
            save_project(self.path, state, self._pages.sha, self._pages.file)
            self._known = self._stamp()

    def _stamp(self) -> tuple | None:
        if self.path is None or not self.path.exists():
            return None
        stat = self.path.stat()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Makes sessions, of other processes too, use a folder one after the other, by a lock that leaves no file.

    Windows and some network drives have none: two sessions that save within the same millisecond do not notice there.

    Args:
        wait: until the folder is free; else one that is not free, or cannot be locked, is an OSError.
    """
    with ExitStack() as stack:
        with suppress(*(ImportError, OSError) if wait else ()):
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged ({type(error).__name__}: {reason(error)}); move it away to start anew.")


def _to_json(instance: Instance) -> dict:
    region = instance.region
    png = cv2.imencode(".png", region.pixels.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])[1]
    record = {
        name: getattr(instance, name) for name in ("number", "name", "words", "model", "page", "prompts", "box", "area")
    }
    return record | {"corner": [region.x0, region.y0], "pixels": base64.b64encode(png).decode()}


def _state(values: dict, pages: Pages) -> State:
    """What a project file holds; an error of Python's for a value that no session writes."""
    instances = tuple(_from_json(record, pages) for record in values["instances"])
    numbers = {i.number for i in instances}
    _need(isinstance(values["instances"], list) and len(numbers) == len(instances), "number")
    _need(isinstance(values["model"], str), "model")
    pages.view(values["page"], values["channel"])
    return State(values["model"], page=values["page"], channel=values["channel"], instances=instances)


def _from_json(record: dict, pages: Pages) -> Instance:
    number, page, (x0, y0), box = (record[key] for key in ("number", "page", "corner", "box"))
    prompts = tuple((*_finite(x, y), label) for x, y, label in record["prompts"])
    box = None if box is None else _finite(*box)
    texts, png = (
        (record["name"], record["model"], record.get("words", "")),
        base64.b64decode(record["pixels"], validate=True),
    )
    width, height = struct.unpack(">II", png[16:24])  # as the header has them, before it is decoded
    rows, columns = pages.page(page).shape[:2]
    _need(type(number) is int and 1 <= number <= np.iinfo(np.int32).max, "number")
    _need(all(is_index(label, 2) for *_, label in prompts), "label of a point")
    _need(box is None or len(box) == 4 and box[0] <= box[2] and box[1] <= box[3], "box")
    _need(all(isinstance(text, str) for text in texts), "name, model or words")
    _need(is_index(x0, columns) and is_index(y0, rows) and x0 + width <= columns and y0 + height <= rows, "corner")
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
    _need(pixels is not None and np.count_nonzero(pixels) == record["area"] > 0, "pixels")
    return Instance(number, texts[0], prompts, box, texts[1], page, Region(x0, y0, pixels > 0), texts[2])


def _finite(*values) -> tuple[float, ...]:
    _need(all(isinstance(v, (int, float)) and math.isfinite(v) for v in values), "number")
    return tuple(float(v) for v in values)


def _need(right: bool, what: str) -> None:
    if not right:
        raise ValueError(f"an instance has an impossible {what}")
