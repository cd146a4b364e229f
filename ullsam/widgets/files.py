"""Files between the person at the browser and the kernel, without a server that hands out paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anywidget
import traitlets

from ullsam.data.io import IMAGE_SUFFIXES
from ullsam.errors import InputError
from ullsam.widgets.live import enable_colab


class FileExchange(anywidget.AnyWidget):
    """Buttons and a place to drop a file; a file comes in pieces of one megabyte, so no server's message limit matters.

    Args:
        on_file: called with the name and the bytes of each image that has arrived; on_labels: of each label image.
        on_example: called when the example is asked for.
        on_results: gives the name and the bytes of what the person downloads.
        limit: megabytes of one file.
        more: `alone=True` where the browser asks before it leaves the page, which loses what is not downloaded.
    """

    _esm = Path(__file__).with_name("files.js")
    _css = Path(__file__).with_name("files.css")
    suffixes = traitlets.List(list(IMAGE_SUFFIXES), help="what a file's name may end in").tag(sync=True)
    limit = traitlets.Int(help="megabytes of one file").tag(sync=True)
    told = traitlets.Unicode(help="what happened last, or what went wrong").tag(sync=True)
    failed = traitlets.Bool(help="it went wrong").tag(sync=True)
    opened = traitlets.Bool(help="there is an image, to which a label image can be added").tag(sync=True)
    ready = traitlets.Bool(help="there are results to download").tag(sync=True)
    unsaved = traitlets.Bool(help="there are results that were not downloaded").tag(sync=True)
    alone = traitlets.Bool(help="leaving the page loses them").tag(sync=True)

    def __init__(self, on_file: Callable, on_labels: Callable, on_example: Callable, on_results: Callable, limit, **more):
        enable_colab()
        self._acts = {
            "begin": self._begin,
            "piece": self._piece,
            "example": lambda *_: on_example(),
            "results": lambda *_: self._save(*on_results()),
        }
        self._takes = {"image": on_file, "labels": on_labels}
        self._forget()
        super().__init__(limit=limit, **more)
        self._limit = limit  # what a browser sets does not count
        self.on_msg(self._receive)

    def tell(self, words: str, failed: bool = False) -> None:
        """Shows a sentence."""
        with self.hold_sync():
            self.told, self.failed = words, failed

    def _receive(self, _widget, content: dict, buffers: list) -> None:
        """A message from the browser; what goes wrong becomes a sentence, and the page goes on."""
        try:
            self._acts.get(content.get("kind"), lambda *_: None)(content, buffers)
        except Exception as error:
            self._forget()
            own = isinstance(error, InputError)
            self.tell(str(error) if own else f"That did not work ({type(error).__name__}); try it again.", failed=True)
            if not own:
                raise

    def _begin(self, content: dict, _buffers: list) -> None:
        name, size, take = content.get("name"), content.get("size"), self._takes.get(content.get("purpose"))
        self._forget()
        if not isinstance(name, str) or not isinstance(size, int) or size < 1 or take is None:
            raise InputError("The browser sent no file; choose it again.")
        self._name, self._size, self._take = name, size, take

    def _piece(self, _content: dict, buffers: list) -> None:
        going = False
        try:
            self._parts += b"".join(bytes(b) for b in buffers)
            if not self._size or len(self._parts) > self._size:
                raise InputError("The upload was interrupted; choose the file again.")
            if self._size > self._limit * 10**6:
                sizes = f"{self._size / 1e6:.1f} MB and the limit is {self._limit} MB"
                raise InputError(f"{self._name} has {sizes}; crop it or save it smaller.")
            going = len(self._parts) < self._size
            if not going:
                name, data, take = self._name, bytes(self._parts), self._take
                self._forget()
                take(name, data)
        finally:
            self.send({"kind": "next", "going": going})

    def _forget(self) -> None:
        self._name, self._size, self._take, self._parts = "", 0, None, bytearray()

    def _save(self, name: str, data: bytes) -> None:
        self.send({"kind": "save", "name": name}, buffers=[data])
        self.unsaved = False
