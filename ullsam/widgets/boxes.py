"""Boxes and class names in, masks out: drag boxes with jupyter-bbox-widget, or give them by program."""

from __future__ import annotations

import ipywidgets
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ullsam.data.io import to_rgb8
from ullsam.errors import InputError
from ullsam.plots.charts import FONT
from ullsam.plots.images import panel_grid, show_masks
from ullsam.plots.overlays import PALETTE, instance_colours, outline, overlay
from ullsam.widgets.live import WRAP, Live, beside, enable_colab, gesture, own_predictor, png_bytes, scaled, still
from ullsam.widgets.pages import is_index

SIDE = 520  # longer side of the image in the browser, pixels
MARGIN = 12  # pixels that jupyter-bbox-widget leaves around it
NARROW = 300  # a picture is not made narrower to fit beside the other one
RESULT_DPI = 100
ENLARGED = 1.6  # the picture of the masks, against a panel of the notebooks
SMALLEST = 2  # pixels along each side of a box that can be segmented; less is a slip of the mouse


class BoxToSegment(Live):
    """A box around each object gives a mask of each; every box has the name of a class.

    A box is x0, y0, x1, y1: the centres of its outermost pixels, in pixels of the image as given.

    Args:
        model: a ULLSAM, or a Predictor, of which only the model is used.
        image: (H, W) or (H, W, C), see `Predictor.set_image`.
        classes: names that a box can have; the first is for new boxes.
        vlk: with vision-language knowledge; a model without VLSA has none.

    Raises:
        InputError: the image is not usable, or there is no class.
    """

    def __init__(self, model, image: np.ndarray, classes: tuple[str, ...] = ("object",), vlk: bool = True):
        self.classes: tuple[str, ...] = ()
        for name in (classes,) if isinstance(classes, str) else classes:
            self._add_class(name)
        if not self.classes:
            raise InputError("There is no class; give at least one name, for example classes=('nucleus',).")
        self.predictor, self.image = own_predictor(model, image), to_rgb8(image)
        self.vlk = vlk and self.predictor.model.vlsa is not None
        self.label = self.classes[0]  # class of the next box
        self.skipped = 0  # boxes in the browser that are too small or outside the image
        self._rows: tuple[tuple[tuple, str], ...] = ()  # (box, class)
        self._found: dict[tuple, tuple] = {}  # box -> mask and score
        super().__init__()

    names = property(lambda self: [name for _, name in self._rows], doc="The class of each box, I names.")

    @property
    def boxes(self) -> np.ndarray:
        """The boxes, float32 (I, 4)."""
        return np.array([box for box, _ in self._rows], np.float32).reshape(-1, 4)  # also for I = 0

    @property
    def masks(self) -> np.ndarray:
        """The mask of each box, bool (I, H, W)."""
        return np.array([self._found[box][0] for box, _ in self._rows], bool).reshape(-1, *self.predictor.size)

    @property
    def scores(self) -> np.ndarray:
        """The model's own estimate of each mask's IoU, float32 (I,)."""
        return np.array([self._found[box][1] for box, _ in self._rows], np.float32)

    @property
    def labels(self) -> np.ndarray:
        """int32 (H, W): 0 background, 1..I the number of the box; where masks overlap, the smaller lies on top."""
        masks, labels = self.masks, np.zeros(self.predictor.size, np.int32)
        for i in np.argsort(-masks.sum((1, 2)), kind="stable"):
            labels[masks[i]] = i + 1
        return labels

    @property
    def class_labels(self) -> np.ndarray:
        """int32 (H, W): 0 background, 1.. the position of the pixel's class in `classes`."""
        table = np.array([0, *(self.classes.index(name) + 1 for name in self.names)], np.int32)
        return table[self.labels]

    def table(self) -> list[dict]:
        """One row per box: number, class, the box, its mask's area in pixels, and the model's own score."""
        columns = ("number", "class", "x0", "y0", "x1", "y1", "area", "score")
        found = enumerate(zip(self._rows, self.masks, self.scores, strict=True), 1)
        rows = [(n, name, *box, int(mask.sum()), round(float(score), 3)) for n, ((box, name), mask, score) in found]
        return [dict(zip(columns, row, strict=True)) for row in rows]

    @gesture
    def add_box(self, x0: float, y0: float, x1: float, y1: float, name: str | None = None) -> int:
        """Adds a box of the class `name` (None: the chosen one), segments it and returns its number, from 1."""
        self._take((*self._rows, ((x0, y0, x1, y1), name or self.label)))
        return len(self._rows)

    @gesture
    def move_box(self, number: int, x0: float, y0: float, x1: float, y1: float) -> None:
        """Gives a box other edges."""
        self._replace(number, ((x0, y0, x1, y1), self._row(number)[1]))

    @gesture
    def name_box(self, number: int, name: str) -> None:
        """Gives a box another class."""
        self._replace(number, (self._row(number)[0], name))

    @gesture
    def remove_box(self, number: int) -> None:
        """Takes a box away; later ones move up by one number."""
        self._replace(number)

    @gesture
    def clear(self) -> None:
        """Takes all boxes away."""
        self._take(())

    @gesture
    def set_boxes(self, bboxes: list[dict]) -> None:
        """All boxes at once, in the form of jupyter-bbox-widget.

        Args:
            bboxes: dicts with x, y (upper left corner), width, height in image pixels counted from the image's edge, and
                label. A box below 2 pixels (one just begun) or outside the image is passed over and counted in `skipped`.
        """
        if not isinstance(bboxes, (list, tuple)):
            raise InputError(f"{bboxes!r} is no list of boxes; give one of dicts with x, y, width and height.")
        rows = [(from_browser(b), b.get("label") or self.label) for b in bboxes]
        usable = tuple(row for row in rows if self._usable(row[0]))
        self._take(usable)
        self.skipped = len(rows) - len(usable)

    @gesture
    def choose_class(self, name: str) -> None:
        """The class of the next box."""
        self.label = self._known(name)

    @gesture
    def add_class(self, name: str) -> None:
        """A new class, which the next box gets."""
        self.label = self._add_class(name)

    @gesture
    def toggle_vlk(self) -> None:
        """Switches vision-language knowledge on or off and segments all boxes again."""
        if self.predictor.model.vlsa is None:
            raise InputError("This model has no vision-language knowledge to switch; load 'tiny', which has it.")
        self.vlk = not self.vlk
        self._take(self._rows, fresh=True)

    def summary(self) -> str:
        """Boxes and masks in words."""
        if not self._rows and not self.skipped:
            return "Drag a box around an object."
        counts = [f"{self.names.count(c)} {c}" for c in self.classes if c in self.names] or ["no box"]
        words = f"{', '.join(counts)}: masks of {int((self.labels > 0).sum())} pixels"
        passed = f"; {self.skipped} box(es) too small or outside the image" if self.skipped else ""
        return f"{words}, {'with' if self.vlk else 'without'} knowledge{passed}."

    def figure(self) -> Figure:
        """The image with boxes, numbers and masks in the colours of their classes, which the legend names."""
        areas, height, width = self.class_labels, *self.predictor.size
        figure, axes = panel_grid(1, 1, min(2.0, height / width), extra=0.35)
        figure.set_size_inches(*ENLARGED * figure.get_size_inches())
        tinted = overlay(self.image, areas)
        outlined = outline(tinted, self.labels, (255, 255, 255))  # in white, so that neighbours are told apart
        tinted = np.where(areas[..., None] > 0, outlined, tinted)
        show_masks(tinted, boxes=self.boxes if self._rows else None, title="boxes and masks", ax=axes[0, 0])
        style = {"fontsize": FONT - 2, "color": "white", "va": "bottom", "clip_on": True}
        for i, (x0, y0, *_) in enumerate(self.boxes, 1):
            axes[0, 0].text(x0, y0, f" {i} ", bbox={"facecolor": "black", "pad": 0.5, "linewidth": 0}, **style)
        colours = {self.classes[k - 1]: np.array(colour) / 255 for k, colour in sorted(instance_colours(areas).items())}
        handles = [Patch(facecolor=colour, label=f"{c} ({self.names.count(c)})") for c, colour in colours.items()]
        if handles:
            options = {"ncols": min(3, len(handles)), "fontsize": FONT - 1, "frameon": False}
            figure.legend(handles=handles, loc="outside lower center", **options)
        return figure

    def _take(self, rows: tuple, fresh: bool = False) -> None:
        """Takes boxes over once all of them could be segmented; masks of boxes that stay are kept unless `fresh`."""
        rows = tuple((self._checked(box), self._known(name)) for box, name in rows)
        known = {} if fresh else self._found
        new = [box for box in dict.fromkeys(box for box, _ in rows) if box not in known]
        if new:
            found = self.predictor.predict(box=np.array(new), use_vlk=self.vlk)
            known = known | {box: (found.masks[i], found.scores[i]) for i, box in enumerate(new)}
        self._found = {box: known[box] for box, _ in rows}
        self._rows, self.skipped = rows, 0

    def _row(self, number: int) -> tuple:
        if not is_index(number, len(self._rows) + 1) or number == 0:
            raise InputError(f"There is no box {number!r}; boxes are numbered 1 to {len(self._rows)}.")
        return self._rows[number - 1]

    def _replace(self, number: int, *rows: tuple) -> None:
        self._row(number)
        self._take(self._rows[: number - 1] + rows + self._rows[number:])

    def _checked(self, box: tuple) -> tuple[float, float, float, float]:
        height, width = self.predictor.size
        try:
            box = tuple(float(v) for v in box)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"The box {box} is not made of numbers; give x0, y0, x1, y1 in pixels.") from error
        if not self._usable(box):
            remedy = f"give x0 < x1 and y0 < y1, at least partly inside the image of {width} x {height} pixels"
            raise InputError(f"The box {box} is not usable; {remedy}.")
        return box

    def _usable(self, box: tuple) -> bool:
        (height, width), (x0, y0, x1, y1) = self.predictor.size, box
        large = x1 - x0 >= SMALLEST - 1 and y1 - y0 >= SMALLEST - 1  # false for NaN too
        return large and x0 <= width - SMALLEST and y0 <= height - SMALLEST and min(x1, y1) >= SMALLEST - 1

    def _known(self, name: str) -> str:
        if name not in self.classes:
            raise InputError(f"There is no class {name!r}; choose one of {', '.join(self.classes)}, or use add_class.")
        return name

    def _add_class(self, name: str) -> str:
        name = str(name).strip()
        if not name or name in self.classes:
            raise InputError(f"{name!r} cannot be a new class; give a name that is not empty and not there already.")
        self.classes += (name,)
        return name

    def _build_view(self) -> ipywidgets.Widget:
        try:
            from jupyter_bbox_widget import BBoxWidget
        except ImportError as error:
            raise InputError("jupyter-bbox-widget is not installed; run: pip install jupyter-bbox-widget") from error
        enable_colab()
        self._scale = SIDE / max(self.predictor.size)  # browser pixels per image pixel
        self._canvas = BBoxWidget(hide_buttons=True, colors=[f"#{bytes(colour).hex()}" for colour in PALETTE])
        self._canvas.image_bytes = png_bytes(scaled(self.image, SIDE))
        self._on_value(self._canvas, self._dragged, "bboxes")
        self._on_value(self._canvas, self.choose_class, "label")
        self._knowledge = self._checkbox("with knowledge (VLK)", lambda _: self.toggle_vlk())
        self._knowledge.disabled = self.predictor.model.vlsa is None
        new = ipywidgets.Text(placeholder="another class", layout={"width": "150px"})
        add = self._button("Add class", lambda: self.add_class(new.value))
        self._result = still()
        row = ipywidgets.HBox([self._knowledge, new, add, self._button("Clear", self.clear)], layout=WRAP)
        pictures = ipywidgets.HBox([beside(self._canvas, NARROW, SIDE + MARGIN), beside(self._result, NARROW)], layout=WRAP)
        return ipywidgets.VBox([row, pictures, self._line])

    def _dragged(self, bboxes: list[dict]) -> None:
        self.set_boxes([b | {k: b[k] / self._scale for k in ("x", "y", "width", "height")} for b in bboxes])

    def _draw(self) -> None:
        if not self.skipped:  # a box that is just being dragged stays as it is
            self._canvas.bboxes = [to_browser(box, name, self._scale) for box, name in self._rows]
        self._canvas.classes, self._canvas.label = list(self.classes), self.label
        self._knowledge.value = self.vlk
        self._result.value = png_bytes(self.figure(), RESULT_DPI)


def from_browser(bbox: dict) -> tuple[float, float, float, float]:
    """x, y, width, height from the image's edge -> centres of the outermost pixels, which are whole numbers."""
    try:
        x, y, width, height = (float(bbox[k]) for k in ("x", "y", "width", "height"))
        return round(x), round(y), round(x + width) - 1, round(y + height) - 1
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{bbox} is no box; give finite numbers for x, y, width and height.") from error


def to_browser(box: tuple, name: str, scale: float) -> dict:
    """The inverse of `from_browser`, with `scale` browser pixels for one of the image."""
    x0, y0, x1, y1 = box
    return {"x": x0 * scale, "y": y0 * scale, "width": (x1 - x0 + 1) * scale, "height": (y1 - y0 + 1) * scale, "label": name}
