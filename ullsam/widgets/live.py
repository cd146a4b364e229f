"""What the teaching widgets share: gestures that show at once, pictures as PNG, and a picture that feels the pointer.

A widget here is a plain object. Its gestures are methods, which work without a browser; the browser's view is built when a
notebook first shows the object, calls the same methods, and is redrawn after each.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import importlib
import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import anywidget
import cv2
import ipywidgets
import numpy as np
import traitlets
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ullsam.data.io import png, to_rgb8
from ullsam.errors import InputError
from ullsam.plots.charts import DPI, Picture
from ullsam.predictor import Predictor

NATURAL = {"max_width": "100%", "align_self": "flex-start"}  # a picture in its own size, or smaller
WRAP = ipywidgets.Layout(flex_flow="row wrap", align_items="flex-start")  # side by side, or below on a narrow screen


def still() -> ipywidgets.Image:
    """A place for a picture as PNG."""
    return ipywidgets.Image(format="png", layout=NATURAL)


def beside(part: ipywidgets.Widget, narrow: int, largest: int | None = None) -> ipywidgets.Box:
    """A picture in a row of several: it shrinks to `narrow` pixels before it goes below them, and grows to `largest`."""
    limit = {} if largest is None else {"max_width": f"{largest}px"}
    return ipywidgets.VBox([part], layout={"flex": f"1 1 {narrow}px", "min_width": f"min(100%, {narrow}px)", **limit})


def gesture(method: Callable) -> Callable:
    """Marks a method as a gesture: its outcome, or the sentence of its error, is shown and becomes `status`."""

    @functools.wraps(method)
    def run(self, *args, **kwargs):
        with self._turn:
            try:
                result = method(self, *args, **kwargs)
            except Exception as error:
                self._show(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
                raise
            self._show(self.summary())
            return result

    return run


class Live:
    """Base of an object with gestures and, when a notebook shows it, a view.

    A class on top has `summary` (the state in words), `figure` (the state as a picture with its legend), `_build_view` (the
    widget, made once) and `_draw` (brings it up to date).
    """

    def __init__(self):
        self._turn = threading.RLock()  # JupyterLab may hand each control's messages to a thread of its own
        self.status = self.summary()  # what happened last, or what went wrong
        self._view: ipywidgets.Widget | None = None
        self._line: ipywidgets.HTML | None = None  # shows the status in the view
        self._drawing = False

    @property
    def view(self) -> ipywidgets.Widget:
        """What the browser shows; for placing it among other widgets."""
        if self._view is None:
            self._line = ipywidgets.HTML()
            self._view = self._build_view()
            self._show(self.status)
        return self._view

    def _show(self, status: str) -> None:
        with self._turn:
            self.status = status
            if self._view is None:
                return
            nested, self._drawing = self._drawing, True  # what the redraw itself sets is no gesture
            try:
                self._line.value = f"<div style='line-height:1.4'>{html.escape(status)}</div>"
                self._draw()
            finally:
                self._drawing = nested

    def _from_browser(self, act: Callable) -> Callable:
        """`act` as a callback: not run by a redraw, and wrong input, shown already, goes no further."""

        def run(*args):
            with self._turn, contextlib.suppress(InputError):
                if not self._drawing:
                    act(*args)

        return run

    def _on_value(self, control: ipywidgets.Widget, act: Callable, names: str = "value") -> ipywidgets.Widget:
        """The control, whose new value goes to `act`."""
        control.observe(self._from_browser(lambda change: act(change["new"])), names=names)
        return control

    def _checkbox(self, words: str, act: Callable) -> ipywidgets.Checkbox:
        return self._on_value(ipywidgets.Checkbox(description=words, indent=False), act)

    def _button(self, words: str, act: Callable) -> ipywidgets.Button:
        button = ipywidgets.Button(description=words, tooltip=words)
        button.on_click(self._from_browser(lambda _: act()))
        return button

    def _repr_mimebundle_(self, **kwargs) -> dict:
        picture = self.figure().image_bytes()  # for pages that show no widgets
        kind = "image/jpeg" if picture[:2] == b"\xff\xd8" else "image/png"
        bundle = dict(self.view._repr_mimebundle_(**kwargs))
        return bundle | {"text/plain": repr(self), kind: base64.b64encode(picture).decode()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.status})"


class PointerImage(anywidget.AnyWidget):
    """A picture without margins that reports where the pointer moves and clicks; arrow keys and Enter do the same.

    `act(kind, x, y, positive)` gets "hover" or "click", pixels of the image (centres are whole numbers), and False for a
    right click or Shift + click. At most one hover is under way at a time; the newest one follows.

    Args:
        size: (H, W) of the image in pixels; label: what it shows, for screen readers; step: pixels per arrow key.
    """

    _esm = Path(__file__).with_name("pointer.js")
    png = traitlets.Bytes(help="the picture").tag(sync=True)
    size = traitlets.List(help="width and height of the image, pixels").tag(sync=True)
    cell = traitlets.List(help="x0, y0, x1, y1 of the framed part, pixel edges; [] for none").tag(sync=True)
    label = traitlets.Unicode(help="what the picture shows").tag(sync=True)
    step = traitlets.Float(8.0, help="pixels that an arrow key moves").tag(sync=True)
    answered = traitlets.Int(0, help="number of messages dealt with").tag(sync=True)

    def __init__(self, act: Callable, size: tuple[int, int], label: str, step: float = 8.0):
        enable_colab()
        self._act = act
        super().__init__(size=[size[1], size[0]], label=label, step=float(step))
        self.on_msg(self._receive)

    def _receive(self, _widget, content: dict, _buffers) -> None:
        kind, (x, y) = content.get("kind"), content.get("xy", (0, 0))
        try:
            if kind in ("hover", "click"):
                self._act(kind, float(x), float(y), bool(content.get("positive", True)))
        finally:
            self.answered += 1


def enable_colab() -> None:
    """On Colab, loads the module at whose sight anywidget switches Colab's widget manager on."""
    if "google.colab" in sys.modules:
        importlib.import_module("google.colab.output")


def own_predictor(model, image: np.ndarray) -> Predictor:
    """A predictor of its own for `image`; `model` is a ULLSAM or a Predictor, of which only the model is used."""
    predictor = Predictor(getattr(model, "model", model))
    predictor.set_image(image)
    return predictor


def png_bytes(picture: np.ndarray | Figure, dpi: float | None = None) -> bytes:
    """A picture, uint8 RGB (H, W, 3) or a figure (at `dpi` dots per inch), as the bytes of a PNG file."""
    if isinstance(picture, Figure):
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png", dpi=dpi or picture.dpi)
        return buffer.getvalue()
    return png(picture)


def scaled(image: np.ndarray, side: int) -> np.ndarray:
    """The image as uint8 RGB whose longer side is `side` pixels."""
    rgb = to_rgb8(image)
    scale = side / max(rgb.shape[:2])
    size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def bare_axes(shape: tuple[int, ...], side: int) -> Axes:
    """Axes that fill a figure, for an image of `shape` (H, W, ...) with `side` pixels along its longer side."""
    inches = [n * side / max(shape[:2]) / DPI for n in (shape[1], shape[0])]
    return Picture(figsize=inches, dpi=DPI).add_axes((0, 0, 1, 1))
