"""Figures for notebooks, and those that hold numbers: training curves and scores."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ullsam.errors import InputError
from ullsam.overlay import PALETTE

DPI = 80
PANEL = 3.0  # inches: 240 pixels
FONT = 9  # points
JPEG_QUALITY = 75
FEW_COLOURS = 2000  # curves and bars have fewer, images more


class Picture(Figure):
    """A figure outside pyplot's global list, which Jupyter shows as a small image."""

    def image_bytes(self) -> bytes:
        """The figure as PNG or as JPEG, whichever is smaller; only JPEG where a palette would change many colours."""
        raw = io.BytesIO()
        self.savefig(raw, format="png", dpi=self.dpi)
        picture = Image.open(raw).convert("RGB")
        forms = [_encoded(picture, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)]
        if picture.getcolors(FEW_COLOURS):
            forms.append(_encoded(picture.quantize(256, dither=Image.Dither.NONE), "PNG", optimize=True))
        return min(forms, key=len)

    def _ipython_display_(self) -> None:
        from IPython.display import Image as Shown
        from IPython.display import display

        display(Shown(data=self.image_bytes()))


def _encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def show_curves(logs: list[dict] | dict[str, list[dict]], keys: Sequence[str] = ("loss",), smooth: int = 9) -> Figure:
    """Training curves: one panel per quantity, one line per run.

    Args:
        logs: log lines as `fit` returns them, or run name -> log lines; each line has a "step".
        keys: quantities to draw.
        smooth: the strong line is the mean of so many log lines, the faint one shows each; 1 for no smoothing.

    Raises:
        InputError: no line holds a quantity, with the names of those that exist.
    """
    runs = logs if isinstance(logs, dict) else {"": logs}
    known = {key for lines in runs.values() for line in lines for key in line}
    if missing := [key for key in keys if key not in known]:
        raise InputError(f"The logs hold no {', '.join(missing)}; choose from {', '.join(sorted(known - {'step'}))}.")
    figure = Picture(figsize=((PANEL + 0.8) * len(keys), PANEL), dpi=DPI, layout="constrained")
    for ax, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for (name, lines), colour in zip(runs.items(), _line_colours(len(runs)), strict=True):
            if lines := [line for line in lines if key in line]:
                _curve(ax, lines, key, name, colour, smooth)
        _plain_axes(ax, "step", key)
        if any(runs):
            ax.legend(fontsize=FONT, frameon=False)
    return figure


def _curve(ax: Axes, lines: list[dict], key: str, name: str, colour, smooth: int) -> None:
    steps, values = (np.array([line[k] for line in lines], dtype=float) for k in ("step", key))
    width = max(1, min(smooth, len(values)))
    if width > 1:
        ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    kernel = np.ones(width)
    sums, counts = (np.convolve(x, kernel, "same") for x in (values, np.ones_like(values)))
    ax.plot(steps, sums / counts, color=colour, linewidth=1.8, label=name)


def _line_colours(count: int) -> list:
    order = (4, 1, 2, 6, 0, 3, 7, 5)  # dark colours first, for lines and bars on white
    return [PALETTE[order[i % len(order)]] / 255 for i in range(count)]


def _plain_axes(ax: Axes, xlabel: str, ylabel: str) -> None:
    ax.set_xlabel(xlabel, fontsize=FONT)
    ax.set_ylabel(ylabel, fontsize=FONT)
    ax.tick_params(labelsize=FONT - 1)
    ax.spines[["top", "right"]].set_visible(False)


def show_scores(
    scores: dict[str, dict[str, float]], ylabel: str, paper: dict[str, dict[str, float]] | None = None, title: str = ""
) -> Figure:
    """Grouped bars with their values: one group per dataset, one bar per model.

    Args:
        scores: dataset -> model -> value; a model may be absent or None for a dataset.
        ylabel: what the values are.
        paper: the paper's values in the same form, drawn as diamonds (they are from other data or a larger model).
    """
    models = list(dict.fromkeys(model for row in scores.values() for model in row))
    if not models:
        raise InputError("There are no scores to show; give dataset -> model -> value.")
    width = 0.8 / len(models)
    inches = max(PANEL + 0.8, 0.42 * len(models) * len(scores) + 1.2)
    figure = Picture(figsize=(inches, PANEL + 0.3), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    for k, (model, colour) in enumerate(zip(models, _line_colours(len(models)), strict=True)):
        offset = (k - (len(models) - 1) / 2) * width
        _bars(ax, [row.get(model) for row in scores.values()], offset, width, colour, model)
        if paper:
            _diamonds(ax, [paper.get(data, {}).get(model) for data in scores], offset)
    if paper:
        ax.scatter([], [], 28, "white", marker="D", edgecolors="black", label="paper")
    ax.set_xticks(range(len(scores)), ["\n".join(textwrap.wrap(name, 16)) for name in scores])
    _plain_axes(ax, "", ylabel)
    ax.set_xlim(-0.6, len(scores) - 0.4)
    ax.margins(y=0.12)
    figure.legend(loc="outside upper center", ncols=min(4, len(models) + bool(paper)), fontsize=FONT, frameon=False)
    if title:
        ax.set_title(title, fontsize=FONT + 1)
    return figure


def _bars(ax: Axes, values: list, offset: float, width: float, colour, label: str) -> None:
    heights = [math.nan if value is None else value for value in values]
    bars = ax.bar(np.arange(len(values)) + offset, heights, 0.92 * width, color=colour, label=label)
    texts = ["" if math.isnan(v) else f"{v:.2f}" if abs(v) < 10 else f"{v:.0f}" for v in heights]
    ax.bar_label(bars, texts, fontsize=FONT - 2, padding=2)


def _diamonds(ax: Axes, values: list, offset: float) -> None:
    for x, value in enumerate(values):
        if value is not None:
            ax.scatter(x + offset, value, 28, "white", marker="D", edgecolors="black", zorder=3)
