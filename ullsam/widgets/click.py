"""Click to segment: the widget of a `ClickSession` in a notebook.

The session does the work. `ClickToSegment` has a method for each of the `GESTURES`, which the mouse calls as well as a line
of Python, and sends the browser what has changed: the picture as JPEG, masks as compressed bytes, the rest as a small dict.
"""

from __future__ import annotations

import functools
import re
import threading
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict
from inspect import signature
from pathlib import Path

import anywidget
import cv2
import numpy as np
import traitlets

from ullsam.errors import InputError
from ullsam.plots.overlays import PALETTE, instance_colours
from ullsam.widgets.export import EXPORT_FORMATS
from ullsam.widgets.instances import file_name
from ullsam.widgets.live import enable_colab
from ullsam.widgets.session import ClickSession
from ullsam.widgets.words import suggestions

PICTURE = 2048  # longer side of the picture and the mask in the browser, pixels; larger ones are shrunk for display only
GHOSTS = 1024  # longer side of the layer with saved instances
COLORING = 512  # longer side of the label map in which neighbours are looked for
ENCODING = "Encoding the image ..."


# what a person can do, in the browser or by a line of Python; each is a method of the session
NAMES = """click move_point set_box clear_box set_words segment_words undo redo clear save_instance select rename delete
edit toggle_vlk toggle_negatives set_candidate set_model set_page set_channel set_display encode""".split()
# name -> the values that the browser must send along; None: Python alone may ask for it
GESTURES = {name: tuple(signature(getattr(ClickSession, name)).parameters)[1:] for name in NAMES}
GESTURES |= {"describe": (), "export": ("formats",), "import_labels": None}
BUSY = {"describe": "The language model is writing ...", "export": "Writing files ..."}  # shown while it takes a moment
BUSY |= dict.fromkeys(("set_model", "set_channel"), ENCODING)
BUSY |= dict.fromkeys(("set_words", "segment_words"), "Reading the words ...")


def bundle(*names: str) -> str:
    """JavaScript modules of this folder as one, since a notebook cannot load one from the other; imported ones first."""
    texts = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names]
    return "\n".join(re.sub(r'^import \{[^}]*\} from "\./[^"]*";$', "", text, flags=re.MULTILINE) for text in texts)


class ClickToSegment(anywidget.AnyWidget):
    """Shows an image and segments what is clicked; each gesture is also a method, so it works without a browser.

    Left click: inside. Right click or Shift + click: outside. Drag: box. A click on a point removes it. Words say what the
    clicks mean, or, without a click, what to segment. The widget lists all gestures and keys. A method raises `InputError`
    where a gesture is not possible; `status` says why, and all stays as it was.

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
    suggestions = traitlets.List(help="phrases of the training vocabulary to choose from").tag(sync=True)

    def __init__(self, models, image, vlk: bool = True, project=None, stack: bool = False, export_folder=None):
        enable_colab()
        self.session = ClickSession(models, image, vlk, project, stack)
        pages = self.session.pages
        beside = pages.path.with_name(f"{file_name(pages.name)}_export") if pages.path else "ullsam_export"
        self.export_folder = Path(export_folder or beside)
        self._turn = threading.RLock()  # JupyterLab hands its gestures to another thread than cells run in
        self._sent: dict = {}  # what the layers in the browser were made of
        super().__init__(status="Click on an object.", suggestions=[*suggestions()])
        self.on_msg(self._receive)
        self._show()

    def __repr__(self) -> str:
        return f"ClickToSegment({self.size[0]} x {self.size[1]} pixels: {self.status})"

    points = property(
        lambda self: np.array([p[:2] for p in self.session.state.prompts], np.float32).reshape(-1, 2),
        doc="Current points, float32 (P, 2), (x, y) in image pixels.",
    )
    point_labels = property(
        lambda self: np.array([p[2] for p in self.session.state.prompts], np.int64),
        doc="int64 (P,), 1 inside and 0 outside.",
    )
    box = property(lambda self: self.session.state.box, doc="(x0, y0, x1, y1) of the current object, or None.")
    mask = property(lambda self: self.session.mask, doc="Current mask, bool (H, W); None without prompts.")
    labels = property(lambda self: self.session.labels, doc="Instances of the page, int32 (H, W), 0 background.")
    instances = property(lambda self: self.session.instances, doc="Saved instances of all pages, list of Instance.")
    vlk = property(lambda self: self.session.vlk, doc="With vision-language knowledge.")
    words = property(lambda self: self.session.words, doc="Words that the mask follows; '' for none.")

    def describe(self) -> str:
        """Asks the language model for a description of the image; `description` grows while it writes."""
        return self._do("describe", on_text=lambda text: self.set_trait("description", text))

    def export(self, folder: str | Path | None = None, formats: Iterable[str] = ("tiff",)) -> dict[str, Path]:
        """Writes the saved instances into a folder, see `ullsam.widgets.export`; returns the path of each format."""
        return self._do("export", folder or self.export_folder, formats)

    def _do(self, name: str, /, *args, **values):
        """Runs a gesture and shows the outcome; an error becomes the status too, and leaves the state as it was."""
        with self._turn:
            try:
                self.busy = BUSY.get(name) or ("" if self.session.encoded else ENCODING)
                result = getattr(self.session, name)(*args, **values)
                self._show(self._summary(name, result))
            except Exception as error:
                self._show(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}", failed=True)
                raise
            return result

    def _receive(self, _widget, content: dict, _buffers) -> None:
        """A gesture from the browser; wrong input has been shown in the status and goes no further."""
        name, values = content.get("kind"), content.get("values") or {}
        try:
            known = GESTURES.get(name)
            if known is not None and set(values) == set(known):
                getattr(self, name)(**values)  # the method of this widget that a line of Python would call
            else:
                self._show(f"This widget knows no gesture {name!r} of this kind; run the cell again.", failed=True)
        except InputError:
            return
        finally:
            self.send({"answered": content.get("id")})

    def _show(self, status: str | None = None, failed: bool = False) -> None:
        """Sends what has changed, in one message."""
        session, state = self.session, self.session.state
        height, width = session.size
        saved = np.where(session.labels == state.editing, 0, session.labels) if state.editing else session.labels
        with self.hold_sync():
            self.size, self.description, self.busy = [width, height], session.description, ""
            if self._is_new("picture", None, (state.page, state.channel, session.contrast)):
                self.image_jpeg = jpeg(session.display_image())
            if self._is_new("mask", session.mask):
                self.mask_bits = b"" if session.mask is None else _layer(session.mask.view(np.uint8), PICTURE, np.packbits)
            if self._is_new("saved", saved, [i.number for i in state.instances]):
                self.saved_ids = _layer(saved, GHOSTS, lambda ids: ids.astype("<u4"))
                here = instance_colours(_shrunk(saved, COLORING))  # neighbours get different ones; elsewhere by number
                colours = {i.number: here.get(i.number, PALETTE[(i.number - 1) % len(PALETTE)]) for i in state.instances}
                self.colors = {str(number): [*map(int, colour)] for number, colour in colours.items()}
            self.shown, self.failed, self.status = self._view(), failed, status or self.status

    def _is_new(self, layer: str, pixels: np.ndarray | None, key=None) -> bool:
        old, self._sent[layer] = self._sent.get(layer), (pixels, key)
        return old is None or old[1] != key or not np.array_equal(old[0], pixels)

    def _view(self) -> dict:
        """All that the browser shows besides pictures and sentences."""
        session, state = self.session, self.session.state
        names = ("editing", "page", "channel", "model", "negatives", "candidate", "words", "alone")
        view = {name: getattr(state, name) for name in names}
        names = ("selected", "models", "vlk", "has_vlk", "encoded", "can_undo", "can_redo", "hint", "no_words")
        view |= {name: getattr(session, name) for name in names} | asdict(session.contrast)
        return view | {
            "points": [list(p) for p in state.prompts],
            "suggested": [list(p) for p in state.suggested],
            "box": state.box and list(state.box),
            "area": 0 if session.mask is None else int(session.mask.sum()),
            "instances": [{k: getattr(i, k) for k in ("number", "name", "words", "area", "page")} for i in state.instances],
            "pages": session.pages.count,
            "channels": list(session.channels),
            "folder": str(self.export_folder),
            "exports": [[name, label] for name, (label, _) in EXPORT_FORMATS.items()],
        }

    def _summary(self, name: str, result) -> str:
        mask, state = self.session.mask, self.session.state
        if name == "export":
            return f"Written: {', '.join(str(path) for path in result.values())}."
        saved, words = f"{counted(len(state.instances), 'instance')} saved.", f"\u201c{self.words}\u201d"
        if mask is None:
            click = f"Click on an object, or segment all that {words} names." if self.words else "Click on an object."
            return saved if state.instances else click
        prompts = [counted(len(state.prompts), "point")] if state.prompts or not state.box else []
        prompts += ["a box"] * bool(state.box) + [f"the words {words}"] * bool(self.words)
        asked = f"All that {words} names" if state.alone and self.words else " and ".join(prompts)
        return f"{self.session.absence} {asked}, mask of {counted(mask.sum(), 'pixel')}; {saved}".strip()


def _method(name: str) -> Callable:
    @functools.wraps(getattr(ClickSession, name))
    def method(self, *args, **values):
        return self._do(name, *args, **values)

    return method


for _name in GESTURES.keys() - {"describe", "export"}:  # `demo.click(30, 20)` is the session's, and the outcome is shown
    setattr(ClickToSegment, _name, _method(_name))


def counted(number: int, thing: str) -> str:
    """A number of things in words, as "1 point" or "3 points"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _shrunk(pixels: np.ndarray, longest: int, how: int = cv2.INTER_NEAREST) -> np.ndarray:
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
