"""The project file of a click session: every saved instance with its prompts and pixels, in one JSON file."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from ullsam.errors import InputError
from ullsam.files import write_json
from ullsam.widgets.instances import Instance, Region, State
from ullsam.widgets.pages import Pages

FORMAT, VERSION = "ullsam project", 1
SUFFIX = ".ullsam.json"


def save_project(path: str | Path, state: State, image_sha: str, image_name: str = "") -> None:
    """Writes the saved instances, and where the session stands, in one step: a reader sees the old file or the new one.

    Args:
        path: the file, by custom `<image file>.ullsam.json`.
        image_sha: fingerprint of the image, see `Pages.sha`; image_name: for people who read the file.

    Raises:
        InputError: the file cannot be written.
    """
    content = {"format": FORMAT, "version": VERSION, "image": {"name": image_name, "sha256": image_sha}}
    content |= {name: getattr(state, name) for name in ("model", "page", "channel")}
    write_json(Path(path).resolve(), content | {"instances": [_to_json(i) for i in state.instances]})  # a link stays one


def load_project(path: str | Path, image_sha: str) -> State:
    """Model, page, channel and instances from a project of the image with this fingerprint.

    Raises:
        InputError: the file cannot be read, or is damaged, of a newer version, or of another image.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from error
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(values.get("version"), int):
        raise InputError(f"{path} is no project file of this widget; name another file with project=...")
    if values["version"] > VERSION:
        versions = f"version {values['version']} of the project format and this ullsam reads up to {VERSION}"
        raise InputError(f"{path} has {versions}; install a newer ullsam.")
    try:
        known, name = values["image"]["sha256"], values["image"].get("name", "")
        instances = tuple(_from_json(record) for record in values["instances"])
        state = State(str(values["model"]), page=int(values["page"]), channel=values["channel"], instances=instances)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error
    if known != image_sha:
        other = f"another image{f' ({name})' if name else ''}"
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
            project = pages.path.with_name(pages.path.name + SUFFIX)
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
        kept = load_project(self.path, self._pages.sha)
        return replace(kept, vlk=state.vlk, model=kept.model if kept.model in models else state.model)

    def write(self, state: State) -> None:
        """Saves the project; `InputError` where the file cannot be written, or another session has changed it."""
        if self.path is None:
            return
        with _one_at_a_time(self.path.parent):
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
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keeps sessions of other processes too from writing projects of this folder, by a lock that leaves no file.

    Windows and some network drives have none: two sessions that save within the same millisecond do not notice there.
    """
    with ExitStack() as stack:
        with suppress(ImportError, OSError):
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged ({type(error).__name__}: {error}); move it away to start anew.")


def _to_json(instance: Instance) -> dict:
    region = instance.region
    png = cv2.imencode(".png", region.pixels.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])[1]
    record = {name: getattr(instance, name) for name in ("number", "name", "model", "page", "prompts", "box", "area")}
    return record | {"corner": [region.x0, region.y0], "pixels": base64.b64encode(png).decode()}


def _from_json(record: dict) -> Instance:
    png = np.frombuffer(base64.b64decode(record["pixels"], validate=True), np.uint8)
    pixels = cv2.imdecode(png, cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise ValueError("the pixels of an instance are no picture")
    x0, y0 = (int(v) for v in record["corner"])
    prompts = tuple((float(x), float(y), int(label)) for x, y, label in record["prompts"])
    box = None if record["box"] is None else tuple(float(v) for v in record["box"])
    number, page, region = int(record["number"]), int(record["page"]), Region(x0, y0, pixels > 0)
    return Instance(number, str(record["name"]), prompts, box, str(record["model"]), page, region)
