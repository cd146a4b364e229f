"""VLSA inspector: what the language model's knowledge says of each place of an image, and what it does to masks."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import ipywidgets
import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from ullsam.data.io import Square, to_rgb8
from ullsam.errors import InputError
from ullsam.evaluation.metrics import dice
from ullsam.plots.charts import FONT
from ullsam.plots.images import panel_grid, show_feature_maps, show_masks, similarity_map
from ullsam.plots.overlays import PALETTE
from ullsam.vlsa import to_grid
from ullsam.widgets.live import WRAP, Live, PointerImage, bare_axes, beside, gesture, own_predictor, png_bytes, scaled, still

SIDE = 480  # longer side of the pictures in the browser, pixels
NARROW = 260  # a picture is not made narrower to fit beside the other one
FIGURE_DPI = 100
MODES = ("similar patches", "colours (PCA)", "masks with/without VLK")
AREAS = ("only with VLK", "only without VLK", "both")
UNLIKE, ALIKE = PALETTE[4], PALETTE[1]  # blue and orange
TINT = 0.8  # opacity at a cosine of 1 or -1
ALIKE_FROM = 0.5  # cosine from which a patch counts as similar in the status line
_COLOURS = LinearSegmentedColormap.from_list(
    "unlike to alike", [(1 - TINT) * 0.5 + TINT * UNLIKE / 255, (0.5, 0.5, 0.5), (1 - TINT) * 0.5 + TINT * ALIKE / 255]
)
_STEPS = ", ".join(f"rgb{tuple(round(255 * float(v)) for v in _COLOURS(x)[:3])}" for x in (0.0, 0.5, 1.0))
_BAR = f"<span style='display:inline-block;width:180px;height:12px;background:linear-gradient(90deg,{_STEPS})'></span>"
SIMILARITY_LEGEND = f"opposite (-1) {_BAR} alike (1)"
_SQUARE = "<span style='display:inline-block;width:14px;height:12px;background:#{}'></span> {}"
MASKS_LEGEND = " &nbsp; ".join(_SQUARE.format(bytes(PALETTE[k]).hex(), name) for k, name in enumerate(AREAS))


@dataclass(frozen=True)
class Layer:
    """One stage of VLSA on the patches that show the image; the padding's patches are left out."""

    values: Tensor  # (C, rows, columns)
    first: tuple[int, int]  # row and column of the first patch on the model's grid
    cell: float  # side of a patch, model pixels

    @classmethod
    def cut(cls, grid: Tensor, square: Square) -> Layer:
        """The part of a map (1, C, h, w) over the model's whole square that holds the image."""
        cell = square.size / grid.shape[-1]
        ends = square.points_in([[-0.5, -0.5], [square.width - 0.5, square.height - 0.5]])  # the image's edges
        (left, top), (right, bottom) = (ends + 0.5) / cell
        first = int(top + 1e-4), int(left + 1e-4)
        rows, columns = slice(first[0], int(np.ceil(bottom - 1e-4))), slice(first[1], int(np.ceil(right - 1e-4)))
        return cls(grid[0, :, rows, columns].float(), first, cell)

    local = property(lambda self: self.values - self.values.mean((1, 2), keepdim=True), doc="Without what all share.")

    def patch(self, square: Square, xy) -> np.ndarray:
        """Points (..., 2) in image pixels -> (row, column) of their patches, int (..., 2)."""
        positions = (square.points_in(xy) + 0.5) / self.cell  # (..., 2), x and y in patches
        return np.floor(positions[..., ::-1] + 1e-4).astype(int) - self.first

    def box(self, square: Square, patch: tuple[int, int]) -> list[float]:
        """x0, y0, x1, y1 of a patch: its edges in pixels from the image's upper left edge, cut at the image."""
        low = (np.array(patch) + self.first)[::-1] * self.cell - 0.5  # model pixels, x and y
        edges = square.points_out(np.stack([low, low + self.cell])) + 0.5  # (2, 2)
        return np.clip(edges, 0, (square.width, square.height)).reshape(4).tolist()

    def on_image(self, values: np.ndarray, square: Square) -> np.ndarray:
        """A number per patch (rows, columns) -> (H, W), each pixel that of its patch."""
        rows = self.patch(square, np.stack([np.zeros(square.height), np.arange(square.height)], -1))[:, 0]
        columns = self.patch(square, np.stack([np.arange(square.width), np.zeros(square.width)], -1))[:, 1]
        return values[rows[:, None], columns]


class VlsaInspector(Live):
    """Point at a patch and see which others its knowledge resembles; PCA colours of each stage; masks with and without VLK.

    Args:
        model: a ULLSAM with a VLSA, or a Predictor, of which only the model is used.
        image: (H, W) or (H, W, C), see `Predictor.set_image`.

    Raises:
        InputError: the model has no VLSA, or the image is not usable.
    """

    def __init__(self, model, image: np.ndarray):
        model = getattr(model, "model", model)
        if model.vlsa is None:
            raise InputError(f"Model {model.config.name} has no VLSA to inspect; load one that has, for example 'tiny'.")
        self.image, self.predictor = to_rgb8(image), own_predictor(model, image)
        self.square, features = self.predictor.view.square, self.predictor.view.features
        with torch.inference_mode():
            states = model.states(features)
            hidden, knowledge = states.image, model.vlsa(states)  # (1, N, D), (1, ...)
        maps = {"image features": features.embedding, "LLM hidden states": to_grid(hidden).permute(0, 3, 1, 2)}
        if knowledge.ndim == 4:  # else the variant's knowledge has no places
            maps["knowledge"] = knowledge
        self.layers = {name: Layer.cut(x, self.square) for name, x in maps.items()}  # the stages of VLSA, in order
        self.stage = list(self.layers)[-1]  # knowledge, where it has places
        self.local = True  # similarity of what differs between places, not of what all share
        self.mode = MODES[0]
        self.pinned = False
        self.position = ((self.square.width - 1) / 2, (self.square.height - 1) / 2)  # (x, y) of the chosen patch
        self.prompts: tuple[tuple[float, float, int], ...] = ()  # (x, y, label) of the masks' points
        self.masks: tuple[np.ndarray, np.ndarray] | None = None  # with and without knowledge, bool (H, W)
        super().__init__()

    layer = property(lambda self: self.layers[self.stage], doc="The chosen stage, a Layer.")

    @property
    def patch(self) -> tuple[int, int]:
        """(row, column) of the chosen patch in `layer.values`."""
        return tuple(int(v) for v in self.layer.patch(self.square, self.position))

    def similarity(self) -> np.ndarray:
        """Cosine similarity of each patch to the chosen one, float32 (rows, columns), from -1 to 1."""
        return similarity_map(self.layer.local if self.local else self.layer.values, self.patch)

    @gesture
    def hover(self, x: float, y: float) -> None:
        """Chooses the patch at (x, y) in image pixels, unless one is pinned."""
        self._inside(x, y)
        if not self.pinned:
            self.position = (float(x), float(y))

    @gesture
    def pin(self, x: float, y: float) -> None:
        """Chooses a patch and keeps it; a second time on the same patch sets the pointer free again."""
        self._inside(x, y)
        before, self.position = self.patch, (float(x), float(y))
        self.pinned = not (self.pinned and self.patch == before)

    @gesture
    def segment(self, x: float, y: float, positive: bool = True) -> None:
        """Adds a point inside (or outside) an object and segments it with and without knowledge."""
        prompts = (*self.prompts, (float(x), float(y), int(positive)))
        table = np.array(prompts)  # (P, 3)
        masks = tuple(self.predictor.predict(table[:, :2], table[:, 2], use_vlk=on).masks[0] for on in (True, False))
        self.prompts, self.masks = prompts, masks

    @gesture
    def clear(self) -> None:
        """Removes the points and the masks."""
        self.prompts, self.masks = (), None

    @gesture
    def set_stage(self, name: str) -> None:
        """Chooses whose vectors are compared: "image features", "LLM hidden states" or "knowledge"."""
        if name not in self.layers:
            raise InputError(f"There is no stage {name!r} with places; choose one of {', '.join(self.layers)}.")
        self.stage = name

    @gesture
    def set_local(self, local: bool) -> None:
        """True: without the mean of all patches, which would make all look alike; False: vectors as they are."""
        self.local = bool(local)

    @gesture
    def set_mode(self, mode: str) -> None:
        """Chooses what is shown, one of `MODES`."""
        if mode not in MODES:
            raise InputError(f"There is no view {mode!r}; choose one of {', '.join(MODES)}.")
        self.mode = mode

    def click(self, x: float, y: float, positive: bool = True) -> None:
        """A click on the image: a point where masks are shown, else it pins the patch."""
        if self.mode == MODES[2]:
            self.segment(x, y, positive)
        else:
            self.pin(x, y)

    def summary(self) -> str:
        """What is shown, in words and numbers."""
        if self.mode == MODES[2]:
            if self.masks is None:
                return "Click on an object; right click or Shift + click for outside."
            on, off = (int(m.sum()) for m in self.masks)
            areas = f"{on} pixels with knowledge, {off} without, agreement (Dice) {dice(*self.masks):.2f}"
            return f"{len(self.prompts)} point(s): {areas}."
        values, (row, column) = self.similarity(), self.patch
        alike, pinned = int((values > ALIKE_FROM).sum()) - 1, " (pinned)" if self.pinned else ""
        others = f"{alike} of {values.size - 1} other patches have a cosine above {ALIKE_FROM}"
        return f"{self.stage}, patch in row {row}, column {column}{pinned}: {others}."

    def figure(self) -> Figure:
        """The chosen view with its legend."""
        if self.mode != MODES[1]:
            return self._similarity_figure() if self.mode == MODES[0] else self._masks_figure()
        figure = show_feature_maps({name: layer.values for name, layer in self.layers.items()}, self.image)
        note = "similar colours in one map = similar vectors (colours cannot be compared between maps)"
        figure.supxlabel(note, fontsize=FONT)
        return figure

    def _similarity_figure(self) -> Figure:
        figure, (axes,) = panel_grid(1, 2, self.square.height / self.square.width, title_lines=2)
        panels = {"image and chosen patch": self.image, f"{self.stage}: which patches are like it?": self._tinted()}
        x0, y0, x1, y1 = self.layer.box(self.square, self.patch)
        for ax, (title, picture) in zip(axes, panels.items(), strict=True):
            show_masks(picture, title=title, ax=ax)
            for width, colour in ((2.6, "black"), (1.2, "white")):
                box = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=width)
                ax.add_patch(box)
        scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(-1, 1), _COLOURS)
        bar = figure.colorbar(scale, ax=axes, shrink=0.9, pad=0.01, ticks=[-1, 0, 1])
        bar.ax.set_yticklabels(["opposite", "unrelated", "alike"], fontsize=FONT - 1)
        return figure

    def _masks_figure(self) -> Figure:
        figure, (axes,) = panel_grid(1, 3, self.square.height / self.square.width, extra=0.35)
        areas = self._areas()
        panels = {"with VLK": areas & 1, "without VLK": areas & 2, "difference": areas}
        for ax, (title, labels) in zip(axes, panels.items(), strict=True):
            self._panel(labels, ax, title)
        named = enumerate(AREAS, 1)
        handles = [Patch(facecolor=PALETTE[k - 1] / 255, label=f"{name}: {(areas == k).sum()} px") for k, name in named]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=FONT, frameon=False)
        return figure

    def _areas(self) -> np.ndarray:
        """int (H, W): 1 only with knowledge, 2 only without, 3 both; `overlay` paints k in PALETTE[k - 1]."""
        on, off = self.masks or (np.zeros(self.predictor.size, bool),) * 2
        return on + 2 * off

    def _panel(self, labels: np.ndarray | None, ax: Axes, title: str | None = None) -> Figure:
        points = np.array(self.prompts).reshape(-1, 3)  # also for none
        return show_masks(self.image, labels, points[:, :2], points[:, 2], title=title, ax=ax)

    def _tinted(self) -> np.ndarray:
        """The image in grey, uint8 (H, W, 3): orange where patches are like the chosen one, blue where opposite."""
        values = self.layer.on_image(self.similarity(), self.square)[..., None]  # (H, W, 1)
        grey = self.image.mean(-1, keepdims=True)
        opacity = TINT * np.abs(values)
        return np.round((1 - opacity) * grey + opacity * np.where(values > 0, ALIKE, UNLIKE)).astype(np.uint8)

    def _inside(self, x: float, y: float) -> None:
        height, width = self.predictor.size
        if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
            raise InputError(f"The point ({x:g}, {y:g}) lies outside the image of {width} x {height} pixels.")

    def _build_view(self) -> ipywidgets.Widget:
        step = self.layer.cell / self.square.scale
        self._pointer = PointerImage(self._pointed, self.predictor.size, "image; point at a patch", step)
        self._result, self._legend = still(), ipywidgets.HTML()
        self._modes = self._on_value(ipywidgets.ToggleButtons(options=MODES, style={"button_width": "180px"}), self.set_mode)
        self._stages = self._on_value(ipywidgets.Dropdown(options=[*self.layers], description="vectors of"), self.set_stage)
        self._locals = self._checkbox("without what all patches share", self.set_local)
        self._clear = self._button("Remove points", self.clear)
        row = ipywidgets.HBox([self._stages, self._locals, self._clear], layout=WRAP)
        result = beside(ipywidgets.VBox([self._result, self._legend]), NARROW)
        self._source = beside(self._pointer, NARROW, SIDE)
        return ipywidgets.VBox([self._modes, row, ipywidgets.HBox([self._source, result], layout=WRAP), self._line])

    def _pointed(self, kind: str, x: float, y: float, positive: bool) -> None:
        if kind == "click":
            self._from_browser(self.click)(x, y, positive)
        elif self.mode == MODES[0] and not self.pinned:
            self._from_browser(self.hover)(x, y)

    def _draw(self) -> None:
        similar, masks = self.mode == MODES[0], self.mode == MODES[2]
        self._modes.value, self._stages.value, self._locals.value = self.mode, self.stage, self.local
        parts = {self._stages: similar, self._locals: similar, self._clear: masks, self._source: similar or masks}
        for part, visible in parts.items():
            part.layout.display = "" if visible else "none"
        self._pointer.cell = self.layer.box(self.square, self.patch) if similar else []
        self._pointer.png = self._bare(None) if masks else png_bytes(scaled(self.image, SIDE))
        if similar:  # without a figure around it, since the pointer moves
            picture, scale = scaled(self._tinted(), SIDE), SIDE / max(self.predictor.size)
            x0, y0, x1, y1 = (round(v * scale) for v in self.layer.box(self.square, self.patch))
            for thickness, colour in ((4, (0, 0, 0)), (2, (255, 255, 255))):
                cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), colour, thickness)
            self._result.value, self._legend.value = png_bytes(picture), SIMILARITY_LEGEND
        elif masks:
            self._result.value, self._legend.value = self._bare(self._areas()), MASKS_LEGEND
        else:
            self._result.value, self._legend.value = png_bytes(self.figure(), FIGURE_DPI), ""

    def _bare(self, labels: np.ndarray | None) -> bytes:
        return png_bytes(self._panel(labels, bare_axes(self.predictor.size, SIDE)))
