"""Click to segment: a session of clicks on one image, and the widget that shows it in a notebook.

`ClickSession` holds the state and knows nothing of browsers; `ClickToSegment` passes every gesture on to it, whether
it comes from the mouse or from a line of Python, and sends the browser pictures instead of arrays.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import anywidget
import cv2
import numpy as np
import traitlets

from ullsam.data.io import to_rgb8
from ullsam.errors import InputError
from ullsam.predictor import Predictor

DISPLAY_SIDE = 768  # longer side of the picture in the browser, pixels; larger images are shrunk for display only
GRAB = 0.01  # a click this near to a point, as a share of the image's longer side, takes the point away
MASK_COLOR = (255, 215, 0)  # RGB of the current mask
SAVED_COLORS = ((0, 158, 115), (86, 180, 233), (204, 121, 167), (230, 97, 0), (93, 58, 155), (0, 114, 178))
GESTURES = ("click", "undo", "clear", "save_instance", "toggle_vlk", "describe")  # what the browser may ask for


class ClickSession:
    """Points of the object being segmented, its mask, and the instances saved so far, all of one image.

    Points are (x, y) in pixels of the image as given. Arrays are replaced, never changed in place.

    Args:
        predictor: any Predictor; only its model is used, so that several sessions can share one model.
        image: (H, W) or (H, W, C), see `Predictor.set_image`.
        vlk: with vision-language knowledge; a model without VLSA has none.

    Raises:
        InputError: the image is not usable.
    """

    def __init__(self, predictor: Predictor, image: np.ndarray, vlk: bool = True):
        self.predictor = Predictor(predictor.model)
        self.predictor.set_image(image)
        self.vlk = vlk and predictor.model.vlsa is not None
        self.prompts: tuple[tuple[float, float, int], ...] = ()  # (x, y, label), label 1 inside and 0 outside
        self.mask: np.ndarray | None = None  # bool (H, W) of the current points
        self.labels = np.zeros(self.predictor.size, np.int32)  # (H, W), saved instances 1..count
        self.count = 0
        self.description = ""  # the language model's last words
        self._history: list[tuple] = []  # (prompts, count) before each change

    def click(self, x: float, y: float, positive: bool = True) -> None:
        """Adds a point inside (or outside) the object; a click on an existing point takes that point away."""
        near = [i for i, p in enumerate(self.prompts) if np.hypot(p[0] - x, p[1] - y) <= self.grab]
        if near:
            self._change(self.prompts[: near[0]] + self.prompts[near[0] + 1 :])
        else:
            self._change((*self.prompts, (float(x), float(y), int(positive))))

    def undo(self) -> None:
        """Takes back the last change of points, or the last saved instance."""
        if not self._history:
            raise InputError("There is nothing to undo; click on an object first.")
        prompts, count = self._history[-1]
        self.mask = self._segment(prompts)
        self.prompts, self.count = prompts, count
        self.labels = np.where(self.labels > count, 0, self.labels)
        self._history.pop()

    def clear(self) -> None:
        """Removes the points of the current object; saved instances stay."""
        if self.prompts:
            self._change(())

    def save_instance(self) -> int:
        """Adds the current mask to `labels`, without touching earlier instances, and returns its number."""
        if self.mask is None:
            raise InputError("There is no mask to save; click on an object first.")
        free = self.mask & (self.labels == 0)
        if not free.any():
            raise InputError("The mask has no pixel that is not saved already; add a point or clear the points.")
        self._change((), self.count + 1)
        self.labels = np.where(free, np.int32(self.count), self.labels)
        return self.count

    def toggle_vlk(self) -> None:
        """Switches vision-language knowledge on or off and segments again."""
        if self.predictor.model.vlsa is None:
            raise InputError("This model has no vision-language knowledge to switch; load 'tiny', which has it.")
        self.vlk = not self.vlk
        self.mask = self._segment(self.prompts)

    def describe(self) -> str:
        """What the language model says about the image; kept in `description`."""
        self.description = self.predictor.describe()
        return self.description

    @property
    def grab(self) -> float:
        """Distance in pixels within which a click means the point that is there already."""
        return max(1.0, GRAB * max(self.predictor.size))

    def _change(self, prompts: tuple, count: int | None = None) -> None:
        """Takes new points over only when their mask could be computed."""
        mask = self._segment(prompts)
        self._history.append((self.prompts, self.count))
        self.prompts, self.mask = prompts, mask
        self.count = self.count if count is None else count

    def _segment(self, prompts: tuple) -> np.ndarray | None:
        if not prompts:
            return None
        table = np.array(prompts)  # (P, 3)
        return self.predictor.predict(table[:, :2], table[:, 2], use_vlk=self.vlk).masks[0]


class ClickToSegment(anywidget.AnyWidget):
    """Shows an image and segments what is clicked; each gesture is also a method, so it works without a browser.

    Left click: inside. Right click or Shift + click: outside. A click on a point removes it.

    Args:
        predictor, image, vlk: see `ClickSession`.
    """

    _esm = Path(__file__).with_name("click.js")
    size = traitlets.List(help="width and height of the image, pixels").tag(sync=True)
    image_jpeg = traitlets.Bytes(help="the image at display size").tag(sync=True)
    mask_png = traitlets.Bytes(help="coloured masks at display size, transparent elsewhere").tag(sync=True)
    dots = traitlets.List(help="[x, y, label] of each point").tag(sync=True)
    vlk = traitlets.Bool(True, read_only=True, help="with vision-language knowledge").tag(sync=True)
    status = traitlets.Unicode(help="what happened last, or what went wrong").tag(sync=True)
    description = traitlets.Unicode(help="the language model's words").tag(sync=True)
    finished = traitlets.Int(0, help="number of gestures dealt with").tag(sync=True)

    def __init__(self, predictor: Predictor, image: np.ndarray, vlk: bool = True):
        if "google.colab" in sys.modules:  # with this module loaded, anywidget switches Colab's widget manager on
            importlib.import_module("google.colab.output")
        self._session = ClickSession(predictor, image, vlk)
        height, width = self._session.predictor.size
        super().__init__(size=[width, height], image_jpeg=_jpeg(to_rgb8(image)), status="Click on an object.")
        self.on_msg(self._receive)
        self._show()

    def __repr__(self) -> str:
        """What a page that shows no widgets prints instead."""
        return f"ClickToSegment({self.size[0]} x {self.size[1]} pixels: {self.status})"

    @property
    def points(self) -> np.ndarray:
        """Current points, float32 (P, 2), (x, y) in image pixels."""
        return np.array([p[:2] for p in self._session.prompts], np.float32).reshape(-1, 2)  # (P, 2), also for P = 0

    @property
    def point_labels(self) -> np.ndarray:
        """int64 (P,), 1 inside and 0 outside."""
        return np.array([p[2] for p in self._session.prompts], np.int64)

    @property
    def mask(self) -> np.ndarray | None:
        """Current mask, bool (H, W); None without points."""
        return self._session.mask

    @property
    def labels(self) -> np.ndarray:
        """Saved instances, int32 (H, W), 0 background, numbered from 1."""
        return self._session.labels

    def click(self, x: float, y: float, positive: bool = True) -> None:
        """A point at (x, y) in image pixels, inside the object or not; on an existing point: removes it."""
        self._do("click", x=x, y=y, positive=positive)

    def undo(self) -> None:
        """Takes the last change back."""
        self._do("undo")

    def clear(self) -> None:
        """Removes the current points."""
        self._do("clear")

    def save_instance(self) -> int:
        """Saves the current mask as an instance and returns its number."""
        return self._do("save_instance")

    def toggle_vlk(self) -> None:
        """Switches vision-language knowledge on or off."""
        self._do("toggle_vlk")

    def describe(self) -> str:
        """Asks the language model for a description of the image."""
        return self._do("describe")

    def _do(self, gesture: str, **values):
        """Runs a gesture and shows the outcome; an error becomes the status too, and leaves the state as it was."""
        with self.hold_sync():
            try:
                if gesture not in GESTURES:
                    raise InputError(f"This widget knows no gesture {gesture!r}; run the cell again.")
                result = getattr(self._session, gesture)(**values)
                self._show()
                self.status = self._summary()
            except Exception as error:
                self.status = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
                raise
            finally:
                self.finished += 1
        return result

    def _receive(self, _widget, content: dict, _buffers) -> None:
        """A gesture from the browser; wrong input has been shown in the status and goes no further."""
        try:
            self._do(content.get("kind"), **content.get("values", {}))
        except InputError:
            return

    def _show(self) -> None:
        session = self._session
        self.dots = [list(p) for p in session.prompts]
        self.mask_png = _overlay_png(session.labels, session.mask)
        self.description = session.description
        self.set_trait("vlk", session.vlk)

    def _summary(self) -> str:
        session, words = self._session, []
        if session.mask is not None:
            words.append(f"{len(session.prompts)} point(s), mask of {session.mask.sum()} pixels")
        words.append(f"{session.count} instance(s) saved")
        return "; ".join(words) + "."


def _display_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """(width, height) of the picture in the browser for an image of `shape` (H, W, ...)."""
    scale = min(1.0, DISPLAY_SIDE / max(shape[:2]))
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def _jpeg(rgb: np.ndarray) -> bytes:
    shown = cv2.resize(rgb, _display_size(rgb.shape), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", shown[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def _overlay_png(labels: np.ndarray, mask: np.ndarray | None) -> bytes:
    """Transparent picture with saved instances in their colours and the current mask on top."""
    size = _display_size(labels.shape)
    ids = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)  # (H, W) -> (h, w)
    table = np.array([(*color, 110) for color in SAVED_COLORS], np.uint8)
    shown = np.where(ids[..., None] > 0, table[(ids - 1) % len(table)], np.uint8(0))  # (h, w, 4)
    if mask is not None:
        small = cv2.resize(mask.view(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        rim = small - cv2.erode(small, np.ones((3, 3), np.uint8))
        shown[small > 0] = (*MASK_COLOR, 90)
        shown[rim > 0] = (*MASK_COLOR, 255)
    return cv2.imencode(".png", cv2.cvtColor(shown, cv2.COLOR_RGBA2BGRA))[1].tobytes()
