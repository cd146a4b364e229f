"""SBR explorer: choose an object, turn the distances and counts, and see where its training points come from."""

from __future__ import annotations

import html
from dataclasses import dataclass, replace

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from ullsam.data.io import to_rgb8
from ullsam.errors import InputError
from ullsam.plots.images import show_masks, show_sbr
from ullsam.sbr import SbrConfig, instance_ids, sample_points, sbr_regions
from ullsam.widgets.live import WRAP, Live, PointerImage, bare_axes, beside, gesture, png_bytes, still

SIDE = 300  # longer side of the image in the browser, pixels
PICTURE_DPI = 85  # of the regions' picture
CONTROL = {"width": "270px"}
MISSING = "a missing object"  # the menu's entry for an instance without pixels

CASES = {  # name of a branch in SbrPoints -> condition and outcome, in the paper's order
    "Eq. 3, points inside": {
        "core": ("|E| ≥ Nₚ", "Nₚ different pixels of the core E"),
        "core_repeated": ("0 < |E| < Nₚ", "the pixels of the core E, again and again"),
        "centroid": ("|E| = 0 < |M|", "the centroid of M, Nₚ times"),
        "image_center": ("|M| = 0", "the centre of the image, Nₚ times"),
    },
    "Eq. 4, points outside": {
        "ring": ("|B| ≥ Nₙ", "Nₙ different pixels of the ring B"),
        "outside": ("|B| < Nₙ ≤ |O|", "Nₙ different pixels of O, beyond the dilated object"),
        "anywhere": ("|B| < Nₙ and |O| < Nₙ", "Nₙ pixels from anywhere outside M, repeats possible"),
    },
}


@dataclass(frozen=True)
class Choice:
    """What the sliders say; distances in pixels of an image whose longer side is `config.reference_side`."""

    instance: int
    config: SbrConfig = SbrConfig()
    n_pos: int = 1
    n_neg: int = 3
    seed: int = 0


class SbrExplorer(Live):
    """Core, ring and points of one object, with the branches of Eq. 3 and Eq. 4 that were used.

    Letters: M the object's pixels, E its core, B the ring, O what lies beyond the dilated object, Nₚ and Nₙ the numbers of
    points inside and outside. After each gesture `regions` and `points` hold what `sbr_regions` and `sample_points` return.

    Args:
        labels: integer (H, W), the label map, 0 background.
        image: (H, W) or (H, W, C), shown beside the regions; None shows the objects in grey.
        config: the distances to start with; None for the paper's.

    Raises:
        InputError: no label map, no object in it, or an image of another size.
    """

    def __init__(self, labels: np.ndarray, image: np.ndarray | None = None, config: SbrConfig | None = None):
        sbr_regions(labels)  # refuses what is no label map
        self.labels, self.ids = labels, instance_ids(labels)
        if not len(self.ids):
            raise InputError("The label map has no object; give one with at least one instance.")
        self.image = np.where(labels == 0, np.uint8(40), np.uint8(140)) if image is None else to_rgb8(image)
        if self.image.shape[:2] != labels.shape:
            raise InputError(f"The image is {self.image.shape[:2]} and the label map {labels.shape}; give both of one size.")
        self.zoomed = True
        areas = [np.count_nonzero(labels == i) for i in self.ids]
        middling = int(self.ids[np.argsort(areas, kind="stable")[len(areas) // 2]])
        self._take(Choice(middling, config or SbrConfig()))
        super().__init__()

    @gesture
    def choose(self, number: int) -> None:
        """Another object, by its id in the label map."""
        if number not in self.ids:
            some = ", ".join(map(str, self.ids[:12])) + ", ..." * (len(self.ids) > 12)
            raise InputError(f"The label map has no instance {number}; choose one of {some}.")
        self._change(instance=int(number))

    @gesture
    def choose_missing(self) -> None:
        """An object without a pixel, as a crop of the image may leave it."""
        self._change(instance=int(self.ids[-1]) + 1)

    @gesture
    def click(self, x: float, y: float) -> None:
        """The object at (x, y), in pixels of the image."""
        row, column = round(y), round(x)
        if not (0 <= row < self.labels.shape[0] and 0 <= column < self.labels.shape[1]):
            raise InputError(f"The point ({x:g}, {y:g}) lies outside the image; click inside it.")
        if not self.labels[row, column]:
            raise InputError("There is background at this place; click on an object.")
        self._change(instance=int(self.labels[row, column]))

    @gesture
    def set_erosion(self, distance: float) -> None:
        """Steps of erosion that leave the core."""
        self._configure(erosion=distance)

    @gesture
    def set_ring(self, inner: float, outer: float) -> None:
        """Nearest and farthest distance of the ring."""
        self._configure(ring=(inner, outer))

    @gesture
    def set_dilation(self, distance: float) -> None:
        """Steps of dilation beyond which the outside begins."""
        self._configure(dilation=distance)

    @gesture
    def set_counts(self, n_pos: int, n_neg: int) -> None:
        """How many points inside and outside."""
        self._change(n_pos=n_pos, n_neg=n_neg)

    @gesture
    def set_seed(self, seed: int) -> None:
        """Another draw of the points."""
        if seed < 0:
            raise InputError(f"The seed {seed} is negative; give 0 or more.")
        self._change(seed=seed)

    @gesture
    def set_exclude(self, exclude: bool) -> None:
        """Ring and outside in the background only (True), or also in other objects."""
        self._configure(exclude_other_instances=bool(exclude))

    @gesture
    def set_zoom(self, zoomed: bool) -> None:
        """Shows the object and what is near, or the whole image."""
        self.zoomed = bool(zoomed)

    @gesture
    def reset(self) -> None:
        """The paper's settings, for the same object."""
        self._take(Choice(self.choice.instance))

    def sizes(self) -> dict[str, int]:
        """Pixels of M, E, B and O, and the numbers of points Nₚ and Nₙ."""
        r = self.regions
        areas = {"M": self.labels == self.choice.instance, "E": r.core, "B": r.ring, "O": r.outside}
        counts = {name: int(np.count_nonzero(area)) for name, area in areas.items()}
        return counts | {"Nₚ": self.choice.n_pos, "Nₙ": self.choice.n_neg}

    def branches(self) -> list[str]:
        """The case of Eq. 3 and that of Eq. 4 that gave the points, in words with the formula and its numbers."""
        symbols = {key if key.startswith("N") else f"|{key}|": value for key, value in self.sizes().items()}
        sentences = []
        for equation, name, condition, outcome in self._used():
            values = ", ".join(f"{symbol} = {value}" for symbol, value in symbols.items() if symbol in condition)
            number = f"case {list(CASES[equation]).index(name) + 1} of {len(CASES[equation])}"
            sentences.append(f"{equation}, {number}: {condition} ({values}), so {outcome}.")
        return sentences

    def summary(self) -> str:
        """Object and distances in words."""
        c, s, shape = self.choice, self.sizes(), self.labels.shape
        name = f"Object {c.instance}" if s["M"] else MISSING.capitalize()
        steps, (low, high) = c.config.steps(c.config.erosion, shape), c.config.ring_in(shape)
        erosion = f"In this image of {shape[1]} x {shape[0]} pixels, erosion takes {steps} steps"
        ring = f"the ring lies {low:.3g} to {high:.3g} pixels from the object; it has {s['B']} pixels, the core {s['E']}"
        return f"{name}: {s['M']} pixels. {erosion} and {ring}."

    def figure(self) -> Figure:
        """The regions in colours, which the legend names, the points, and the branches above."""
        margin = round(2 * self.choice.config.ring_in(self.labels.shape)[1]) + 6 if self.zoomed else None
        title = "\n".join(f"{equation}: {condition},\n{outcome}" for equation, _, condition, outcome in self._used())
        return show_sbr(self.labels, self.choice.instance, self.regions, self.points, margin, title)

    def _used(self) -> list[tuple[str, str, str, str]]:
        names = self.points.positive_branch, self.points.negative_branch
        return [(equation, name, *CASES[equation][name]) for equation, name in zip(CASES, names, strict=True)]

    def _change(self, **changes) -> None:
        self._take(replace(self.choice, **changes))

    def _configure(self, **changes) -> None:
        self._change(config=replace(self.choice.config, **changes))

    def _take(self, choice: Choice) -> None:
        """Takes a choice over once its points could be drawn."""
        rng = np.random.default_rng(choice.seed)
        points = sample_points(self.labels, choice.instance, rng, choice.n_pos, choice.n_neg, choice.config)
        self.regions = sbr_regions(self.labels, choice.config, choice.instance)
        self.points, self.choice = points, choice

    def _build_view(self) -> ipywidgets.Widget:
        self._picture = PointerImage(self._pointed, self.labels.shape, "image with the chosen object; click to choose")
        self._regions, self._table = still(), ipywidgets.HTML()
        objects = ipywidgets.Dropdown(options=[*map(int, self.ids), MISSING], description="object", layout=CONTROL)
        halves = {"step": 0.5, "readout_format": ".1f"}
        self._controls = {
            "object": self._on_value(objects, lambda i: self.choose_missing() if i == MISSING else self.choose(i)),
            "erosion": self._slider("erosion", 60, self.set_erosion),
            "ring": self._slider("ring", 60, lambda ends: self.set_ring(*ends), ipywidgets.FloatRangeSlider, **halves),
            "dilation": self._slider("dilation", 60, self.set_dilation),
            "n_pos": self._slider("inside Nₚ", 20, lambda n: self.set_counts(n, self.choice.n_neg)),
            "n_neg": self._slider("outside Nₙ", 40, lambda n: self.set_counts(self.choice.n_pos, n)),
            "seed": self._slider("seed", 99, self.set_seed),
            "exclude_other_instances": self._checkbox("no point on other objects", self.set_exclude),
            "zoom": self._checkbox("zoom to the object", self.set_zoom),
        }
        side = self.choice.config.reference_side
        words = f"Distances as in the paper: pixels of an image of {side} x {side}. "
        words += "Green circle: point inside; red cross: point outside."
        note = ipywidgets.HTML(f"<div style='line-height:1.4;font-size:90%'>{words}</div>")
        reset = self._button("Paper's settings", self.reset)
        column = ipywidgets.VBox([*self._controls.values(), note, reset], layout={"width": "290px"})
        pictures = ipywidgets.HBox([beside(self._picture, 180, SIDE), beside(self._regions, 300)], layout=WRAP)
        right = ipywidgets.VBox([pictures, self._table, self._line], layout={"flex": "1 1 400px"})
        return ipywidgets.HBox([column, right], layout=WRAP)

    def _pointed(self, kind: str, x: float, y: float, _positive: bool) -> None:
        if kind == "click":
            self._from_browser(self.click)(x, y)

    def _slider(self, name: str, last: int, act, widget=ipywidgets.IntSlider, **options) -> ipywidgets.Widget:
        slider = widget(description=name, min=0, max=last, continuous_update=False, layout=CONTROL, **options)
        return self._on_value(slider, act)

    def _draw(self) -> None:
        c, values = self.choice, vars(self.choice) | vars(self.choice.config)
        values |= {"object": c.instance if c.instance in self.ids else MISSING, "zoom": self.zoomed}
        for name, control in self._controls.items():
            value = round(values[name]) if isinstance(control, ipywidgets.IntSlider) else values[name]
            if hasattr(control, "max"):  # a script may go beyond the slider's end
                control.max = max(control.max, *np.atleast_1d(value).tolist())
            control.value = value
        axes = bare_axes(self.labels.shape, SIDE)
        show_masks(self.image, None, self.points.points, self.points.labels, ax=axes, truth=self.labels == c.instance)
        self._picture.png = png_bytes(axes.figure)
        self._regions.value = png_bytes(self.figure(), PICTURE_DPI)
        rows = []  # all cases of both equations, the used ones marked
        for equation, used, *_ in self._used():
            rows.append(f"<tr><td colspan=3><b>{equation}</b></td></tr>")
            for name, (condition, outcome) in CASES[equation].items():
                mark, style = ("▶", "font-weight:bold") if name == used else ("", "opacity:0.55")
                cells = "".join(f"<td style='padding:0 8px'>{html.escape(x)}</td>" for x in (mark, condition, outcome))
                rows.append(f"<tr style='{style};line-height:1.3'>{cells}</tr>")
        self._table.value = f"<table>{''.join(rows)}</table>"
