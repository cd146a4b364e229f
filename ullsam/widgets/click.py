"""Click to segment: the widget of a `ClickSession` in a notebook.

The session does the work. `ClickToSegment` passes every gesture on to it, whether it comes from the mouse or from a line of
Python, and sends the browser what has changed: the picture as JPEG, masks as compressed bytes, the rest as a small dict.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import anywidget
import cv2
import numpy as np
import traitlets

from ullsam.errors import InputError
from ullsam.plots.overlays import PALETTE, instance_colours
from ullsam.widgets.live import enable_colab
from ullsam.widgets.session import ClickSession

PICTURE = 2048  # longer side of the picture and the mask in the browser, pixels; larger ones are shrunk for display only
GHOSTS = 1024  # longer side of the layer with saved instances
COLORING = 512  # longer side of the label map in which neighbours are looked for
GESTURES = {  # what the browser may ask for, and the values it may send along
    "click": ("x", "y", "positive", "grab"),
    "move_point": ("index", "x", "y"),
    "set_box": ("x0", "y0", "x1", "y1"),
    "clear_box": (),
    "undo": (),
    "redo": (),
    "clear": (),
    "save_instance": (),
    "select": ("number",),
    "rename": ("number", "name"),
    "delete": ("number",),
    "edit": ("number",),
    "toggle_vlk": (),
    "toggle_negatives": (),
    "set_candidate": ("k",),
    "set_model": ("name",),
    "set_page": ("z",),
    "set_channel": ("channel",),
    "set_display": ("low", "high", "gamma"),
    "encode": (),
    "describe": (),
    "export": ("kinds",),
}
EXPORTS = {
    "tiff": "Label image (16-bit TIFF)",
    "roi": "ImageJ ROIs (zip)",
    "coco": "COCO (JSON)",
    "overlay": "Overlay (PNG)",
    "csv": "Measurements (CSV)",
    "corpus": "Folder for training",
}
ENCODING = "Encoding the image ..."
SLOW = {
    "set_model": ENCODING,
    "set_channel": ENCODING,
    "describe": "The language model is writing ...",
    "export": "Writing files ...",
}
SETTINGS = (
    "selected",
    "editing",
    "page",
    "pages",
    "channel",
    "model",
    "models",
    "vlk",
    "has_vlk",
    "negatives",
    "candidate",
    "encoded",
    "can_undo",
    "can_redo",
)


def bundle(*names: str) -> str:
    """JavaScript modules of this folder as one, since a notebook cannot load one from the other; imported ones first."""
    texts = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names]
    return "\n".join(re.sub(r'^import \{[^}]*\} from "\./[^"]*";$', "", text, flags=re.MULTILINE) for text in texts)


class ClickToSegment(anywidget.AnyWidget):
    """Shows an image and segments what is clicked; each gesture is also a method, so it works without a browser.

    Left click: inside. Right click or Shift + click: outside. Drag: box. A click on a point removes it. The widget lists
    all gestures and keys. A method raises `InputError` where a gesture is not possible; `status` says why, and all stays
    as it was.

    Args:
        models, image, vlk, project, stack: see `ClickSession`.
        export_folder: where `export` writes; None: beside an image given as a path, else `ullsam_export`.
    """

    _esm = bundle("click_logic.js", "click_parts.js", "click_stage.js", "click.js")
    _css = Path(__file__).with_name("click.css")
    size = traitlets.List(help="width and height of the image, pixels").tag(sync=True)
    image_jpeg = traitlets.Bytes(help="the image").tag(sync=True)
    mask_bits = traitlets.Bytes(help="current mask, a layer of packed bits; empty without a mask").tag(sync=True)
    saved_ids = traitlets.Bytes(help="numbers of saved instances, a layer of uint32; empty without one").tag(sync=True)
    colors = traitlets.Dict(help="number of an instance -> red, green, blue").tag(sync=True)
    shown = traitlets.Dict(help="prompts, instances and settings").tag(sync=True)
    status = traitlets.Unicode(help="what happened last, or what went wrong").tag(sync=True)
    failed = traitlets.Bool(help="the last gesture went wrong").tag(sync=True)
    busy = traitlets.Unicode(help="what takes a moment right now, empty at rest").tag(sync=True)
    description = traitlets.Unicode(help="the language model's words").tag(sync=True)

    def __init__(
        self, models, image, vlk: bool = True, project=None, stack: bool = False, export_folder: str | Path | None = None
    ):
        enable_colab()
        self.session = ClickSession(models, image, vlk, project, stack)
        beside = isinstance(image, (str, Path))
        self.export_folder = Path(export_folder or (f"{Path(image).with_suffix('')}_export" if beside else "ullsam_export"))
        self._turn = threading.RLock()  # JupyterLab hands its gestures to another thread than cells run in
        self._sent: dict = {}  # what the layers in the browser were made of
        super().__init__(status="Click on an object.")
        self.on_msg(self._receive)
        self._show()

    def __repr__(self) -> str:
        """What a page that shows no widgets prints instead."""
        return f"ClickToSegment({self.size[0]} x {self.size[1]} pixels: {self.status})"

    # ---------------------------------------------------------------- what there is to read

    points = property(
        lambda self: np.array([p[:2] for p in self.session.prompts], np.float32).reshape(-1, 2),
        doc="Current points, float32 (P, 2), (x, y) in image pixels.",
    )
    point_labels = property(
        lambda self: np.array([p[2] for p in self.session.prompts], np.int64), doc="int64 (P,), 1 inside and 0 outside."
    )
    box = property(lambda self: self.session.box, doc="(x0, y0, x1, y1) of the current object, or None.")
    mask = property(lambda self: self.session.mask, doc="Current mask, bool (H, W); None without prompts.")
    labels = property(
        lambda self: self.session.labels,
        doc="Saved instances of the current page, int32 (H, W), 0 background, numbered from 1.",
    )
    instances = property(lambda self: self.session.instances, doc="Saved instances of all pages, list of Instance.")
    vlk = property(lambda self: self.session.vlk, doc="With vision-language knowledge.")

    # ---------------------------------------------------------------- gestures

    def click(self, x: float, y: float, positive: bool = True, grab: float | None = None) -> None:
        """A point at (x, y) in image pixels, inside the object or not; on an existing point, `grab` near: removes it."""
        self._do("click", x=x, y=y, positive=positive, grab=grab)

    def move_point(self, index: int, x: float, y: float) -> None:
        """Moves the point of this index, from 0."""
        self._do("move_point", index=index, x=x, y=y)

    def set_box(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """A box around the object, in image pixels."""
        self._do("set_box", x0=x0, y0=y0, x1=x1, y1=y1)

    def clear_box(self) -> None:
        """Removes the box."""
        self._do("clear_box")

    def undo(self) -> None:
        """Takes the last change back."""
        self._do("undo")

    def redo(self) -> None:
        """Does again what was taken back."""
        self._do("redo")

    def clear(self) -> None:
        """Removes the current points and box."""
        self._do("clear")

    def save_instance(self) -> int:
        """Saves the current mask as an instance and returns its number."""
        return self._do("save_instance")

    def select(self, number: int | None) -> None:
        """Marks a saved instance; None marks none."""
        self._do("select", number=number)

    def rename(self, number: int, name: str) -> None:
        """Gives a saved instance a name."""
        self._do("rename", number=number, name=name)

    def delete(self, number: int) -> None:
        """Deletes a saved instance."""
        self._do("delete", number=number)

    def edit(self, number: int) -> None:
        """Makes a saved instance the current object again."""
        self._do("edit", number=number)

    def toggle_vlk(self) -> None:
        """Switches vision-language knowledge on or off."""
        self._do("toggle_vlk")

    def toggle_negatives(self) -> None:
        """Switches automatic points outside of the object on or off."""
        self._do("toggle_negatives")

    def set_candidate(self, k: int) -> None:
        """Chooses the single mask (0) or one of three candidates (1..3)."""
        self._do("set_candidate", k=k)

    def set_model(self, name: str) -> None:
        """Changes to another model."""
        self._do("set_model", name=name)

    def set_page(self, z: int) -> None:
        """Goes to a page of a stack, from 0."""
        self._do("set_page", z=z)

    def set_channel(self, channel: int | None) -> None:
        """Chooses a channel, from 0, or all (None)."""
        self._do("set_channel", channel=channel)

    def set_display(self, low: float = 0.0, high: float = 100.0, gamma: float = 1.0) -> None:
        """Contrast between two percentiles, and gamma, of the picture on the screen."""
        self._do("set_display", low=low, high=high, gamma=gamma)

    def encode(self) -> None:
        """Encodes the image now, so that the first click need not wait."""
        self._do("encode")

    def describe(self) -> str:
        """Asks the language model for a description of the image; `description` grows while it writes."""
        return self._do("describe", on_text=lambda text: self.set_trait("description", text))

    def import_labels(self, source: np.ndarray | str | Path) -> int:
        """Takes the objects of a label image over, to correct them, and returns how many."""
        return self._do("import_labels", source=source)

    def export(self, folder: str | Path | None = None, kinds: Iterable[str] = ("tiff",)) -> dict[str, Path]:
        """Writes the saved instances into a folder, see `ullsam.widgets.export`; returns the path of each kind."""
        return self._do("export", folder=folder or self.export_folder, kinds=kinds)

    # ---------------------------------------------------------------- between session and browser

    def _do(self, gesture: str, **values):
        """Runs a gesture and shows the outcome; an error becomes the status too, and leaves the state as it was."""
        with self._turn:
            try:
                self.busy = SLOW.get(gesture, "" if self.session.encoded else ENCODING)
                result = getattr(self.session, gesture)(**values)
                self._show(self._summary(gesture, result))
            except Exception as error:
                self._show(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}", failed=True)
                raise
            return result

    def _receive(self, _widget, content: dict, _buffers) -> None:
        """A gesture from the browser; wrong input has been shown in the status and goes no further."""
        kind, values = content.get("kind"), content.get("values") or {}
        try:
            if kind in GESTURES and set(values) == set(GESTURES[kind]):
                getattr(self, kind)(**values)
            else:
                self._show(f"This widget knows no gesture {kind!r} of this kind; run the cell again.", failed=True)
        except InputError:
            return
        finally:
            self.send({"answered": content.get("id")})

    def _show(self, status: str | None = None, failed: bool = False) -> None:
        """Sends what has changed, in one message."""
        session = self.session
        height, width = session.size
        saved = np.where(session.labels == session.editing, 0, session.labels) if session.editing else session.labels
        with self.hold_sync():
            self.size, self.description, self.busy = [width, height], session.description, ""
            if self._is_new("picture", None, (session.page, session.channel, session.contrast)):
                self.image_jpeg = jpeg(session.display_image())
            if self._is_new("mask", session.mask):
                self.mask_bits = b"" if session.mask is None else _layer(session.mask.view(np.uint8), PICTURE, np.packbits)
            if self._is_new("saved", saved, [i.number for i in session.instances]):
                self.saved_ids = _layer(saved, GHOSTS, lambda ids: ids.astype("<u4"))
                self.colors = _colors(session.instances, saved)
            self.shown, self.failed, self.status = self._view(), failed, status or self.status

    def _is_new(self, layer: str, pixels: np.ndarray | None, key=None) -> bool:
        """The layer differs from what the browser has."""
        old, self._sent[layer] = self._sent.get(layer), (pixels, key)
        return old is None or old[1] != key or not np.array_equal(old[0], pixels)

    def _view(self) -> dict:
        """All that the browser shows besides pictures and sentences."""
        session, contrast = self.session, self.session.contrast
        instances = [{"number": i.number, "name": i.name, "area": i.area, "page": i.page} for i in session.instances]
        return {name: getattr(session, name) for name in SETTINGS} | {
            "points": [list(p) for p in session.prompts],
            "suggested": [list(p) for p in session.suggested],
            "box": session.box and list(session.box),
            "area": 0 if session.mask is None else int(session.mask.sum()),
            "instances": instances,
            "channels": list(session.channels),
            "folder": str(self.export_folder),
            "low": contrast.low,
            "high": contrast.high,
            "gamma": contrast.gamma,
            "exports": [list(item) for item in EXPORTS.items()],
        }

    def _summary(self, gesture: str, result) -> str:
        """What happened, in words."""
        session, words = self.session, []
        if gesture == "export":
            return f"Written: {', '.join(str(path) for path in result.values())}."
        if session.mask is not None:
            prompts = [counted(len(session.prompts), "point")] if session.prompts or not session.box else []
            given = " and ".join([*prompts, *["a box"] * bool(session.box)])
            words.append(f"{given}, mask of {counted(session.mask.sum(), 'pixel')}")
        elif not session.instances:
            return "Click on an object."
        return "; ".join([*words, f"{counted(len(session.instances), 'instance')} saved"]) + "."


def counted(number: int, thing: str) -> str:
    """A number of things in words, as "1 point" or "3 points"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _shrunk(pixels: np.ndarray, longest: int, how: int = cv2.INTER_NEAREST) -> np.ndarray:
    """An image or label map (H, W, ...) whose longer side is at most `longest`."""
    scale = min(1.0, longest / max(pixels.shape[:2]))
    size = [max(1, round(side * scale)) for side in (pixels.shape[1], pixels.shape[0])]
    return pixels if scale == 1 else cv2.resize(pixels, size, interpolation=how)


def jpeg(rgb: np.ndarray) -> bytes:
    """A picture for the screen, uint8 RGB (H, W, 3), as the bytes of a JPEG file, shrunk if it is large."""
    shown = _shrunk(rgb, PICTURE, cv2.INTER_AREA)
    return cv2.imencode(".jpg", shown[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def _layer(pixels: np.ndarray, longest: int, pack: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """What the browser needs of a mask or label map (H, W): the part that is not 0, and where it lies.

    Six uint32 in little-endian order (x, y, width, height of the part, width, height of the whole), then the part as `pack`
    makes it of its rows, with zlib. Empty if all is 0.
    """
    small = _shrunk(pixels, longest)
    x, y, width, height = cv2.boundingRect((small > 0).view(np.uint8))
    if not width:
        return b""
    head = np.array([x, y, width, height, small.shape[1], small.shape[0]], "<u4")
    return head.tobytes() + zlib.compress(pack(small[y : y + height, x : x + width].ravel()).tobytes(), 1)


def _colors(instances: list, labels: np.ndarray) -> dict[str, list[int]]:
    """Neighbours in the picture get different colours; instances that are not in it that of their number."""
    here = instance_colours(_shrunk(labels, COLORING))
    return {str(i.number): [*map(int, here.get(i.number, PALETTE[(i.number - 1) % len(PALETTE)]))] for i in instances}
