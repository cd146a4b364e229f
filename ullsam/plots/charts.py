"""Figures for notebooks, and those that hold numbers: training curves and scores."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ullsam.errors import InputError
from ullsam.files import whole
from ullsam.plots.overlays import DARK

DPI = 80
PANEL = 3.0  # inches: 240 pixels
FONT = 9  # points
JPEG_QUALITY = 75
FEW_COLOURS = 2000  # curves and bars have fewer, images more
LEGEND = {"frameon": False, "fontsize": FONT}
BELOW = LEGEND | {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "fontsize": FONT - 1}  # the axes
# words of `show_knowledge` for the keys of its result
STEP_LABELS = ("image\nfeatures", "image\ntokens", "language\nmodel", "knowledge")
ANSWERS = {
    "dataset": "which dataset",
    "modality": "which kind of microscopy",
    "structure": "which structure",
    "objects": "where objects are (patches)",
}
ARM_LABELS = {
    "none": "switched off",
    "other": "of another image",
    "places": "places shuffled",
    "constant": "one average for all",
    "zero": "zeros",
    "double": "times 2",
    "five": "times 5",
    "points": "new points, same object",
    "coarse": "coarse features of\nanother image",
    "features": "all features of\nanother image",
}
FRACTION_LABELS = {
    "constant": "always the same",
    "place": "differs between places, not images",
    "image": "differs between images, not places",
    "both": "differs between images and places",
}


class Picture(Figure):
    """A figure outside pyplot's global list, which Jupyter shows as a small image."""

    def image_bytes(self) -> bytes:
        """The figure as PNG or as JPEG, whichever is smaller; only JPEG where a palette would change many colours."""
        raw = io.BytesIO()
        self.savefig(raw, format="png", dpi=self.dpi)
        picture = Image.open(raw).convert("RGB")
        jpeg, png = io.BytesIO(), io.BytesIO()
        picture.save(jpeg, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
        if not picture.getcolors(FEW_COLOURS):
            return jpeg.getvalue()
        picture.quantize(256, dither=Image.Dither.NONE).save(png, "PNG", optimize=True)
        return min(jpeg.getvalue(), png.getvalue(), key=len)

    def save(self, path: str | Path) -> None:
        """The figure as a PNG file, in one step.

        Raises:
            InputError: the folder does not exist.
        """
        if not Path(path).parent.is_dir():
            raise InputError(f"The folder {Path(path).parent} does not exist; create it first.")
        with whole(path) as part:
            self.savefig(part, format="png", dpi=2 * self.dpi)

    def _ipython_display_(self) -> None:
        from IPython import display

        display.display(display.Image(data=self.image_bytes()))


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
        for (name, lines), colour in zip(runs.items(), cycle(DARK), strict=False):
            if not (lines := [line for line in lines if key in line]):
                continue
            steps, values = (np.array([line[k] for line in lines], dtype=float) for k in ("step", key))
            width = max(1, min(smooth, len(values)))
            if width > 1:
                ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            sums, counts = (np.convolve(x, np.ones(width), "same") for x in (values, np.ones_like(values)))
            ax.plot(steps, sums / counts, color=colour, linewidth=1.8, label=name)
        plain_axes(ax, "step", key)
        if any(runs):
            ax.legend(**LEGEND)
    return figure


def plain_axes(ax: Axes, xlabel: str = "", ylabel: str = "", title: str = "", title_size: float = FONT + 1) -> None:
    """Small labels, and no frame above and on the right."""
    ax.set_title(title, fontsize=title_size)
    ax.set_xlabel(xlabel, fontsize=FONT)
    ax.set_ylabel(ylabel, fontsize=FONT)
    ax.tick_params(labelsize=FONT - 1)
    ax.spines[["top", "right"]].set_visible(False)


def show_scores(scores: dict[str, dict[str, float]], ylabel: str, title: str = "") -> Figure:
    """Grouped bars with their values: one group per dataset, one bar per model.

    Args:
        scores: dataset -> model -> value; a model may be absent or None for a dataset.
        ylabel: what the values are.
    """
    models = list(dict.fromkeys(model for row in scores.values() for model in row))
    if not models:
        raise InputError("There are no scores to show; give dataset -> model -> value.")
    width = 0.8 / len(models)
    inches = max(PANEL + 0.8, 0.42 * len(models) * len(scores) + 1.2)
    figure = Picture(figsize=(inches, PANEL + 0.3), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    for k, (model, colour) in enumerate(zip(models, cycle(DARK), strict=False)):
        x = np.arange(len(scores)) + (k - (len(models) - 1) / 2) * width
        heights = [math.nan if row.get(model) is None else row[model] for row in scores.values()]
        texts = ["" if math.isnan(v) else f"{v:.2f}" if abs(v) < 10 else f"{v:.0f}" for v in heights]
        ax.bar_label(ax.bar(x, heights, 0.92 * width, color=colour, label=model), texts, fontsize=FONT - 2, padding=2)
    ax.set_xticks(range(len(scores)), ["\n".join(textwrap.wrap(name, 16)) for name in scores])
    plain_axes(ax, "", ylabel, title)
    ax.set_xlim(-0.6, len(scores) - 0.4)
    ax.margins(y=0.12)
    figure.legend(loc="outside upper center", ncols=min(4, len(models)), **LEGEND)
    return figure


def show_knowledge(result: dict) -> Figure:
    """What vision-language knowledge says, what the masks make of it, and how varied it is.

    Args:
        result: of `knowledge.measure_knowledge`. Lines and whiskers are 95 % intervals over images.
    """
    figure = Picture(figsize=(5.2 * PANEL, 1.5 * PANEL), dpi=DPI, layout="constrained")
    read, used, varied = figure.subplots(1, 3, width_ratios=(1.1, 0.9, 0.9))
    _probe_lines(read, result["probes"])
    _mask_bars(used, result["masks"])
    _fraction_bars(varied, result["shares"])
    return figure


def _probe_lines(ax: Axes, probes: dict) -> None:
    """One line per question along the four steps, its chance level dashed."""
    for k, (name, colour) in enumerate(zip(probes, cycle(DARK), strict=False)):
        steps = list(probes[name]["steps"].values())
        x, means = np.arange(len(steps)) + 0.06 * (k - 1.5), np.array([e["mean"] for e in steps], float)
        whiskers = np.abs(np.array([e["interval"] or (math.nan, math.nan) for e in steps]).T - means)  # (2, 4)
        ax.errorbar(x, means, whiskers, color=colour, marker="o", markersize=4, capsize=2, label=ANSWERS[name])
        ax.plot((-0.3, 3.3), [probes[name]["chance"]] * 2, color=colour, linestyle=":", linewidth=1.2)
    ax.set_xticks(range(len(STEP_LABELS)), STEP_LABELS)
    plain_axes(ax, "", "share right (dotted: by chance)", "What a linear layer reads off each step")
    ax.set_ylim(0, 1.02)
    ax.legend(**BELOW, ncols=2)


def _mask_bars(ax: Axes, masks: dict) -> None:
    """Change of Dice in each arm, and how much of the masks' area moves."""
    arms = [arm for arm in ARM_LABELS if arm in masks]
    changes = [masks[arm]["dice_change"] for arm in arms]
    means = np.array([e["mean"] for e in changes])
    whiskers = np.abs(np.array([e["interval"] for e in changes]).T - means)
    colours = ["#999999" if arm in ("points", "coarse", "features") else DARK[0] for arm in arms]
    ax.barh(range(len(arms)), means, xerr=whiskers, color=colours, error_kw={"linewidth": 1, "capsize": 2})
    ax.set_yticks(range(len(arms)), [ARM_LABELS[arm] for arm in arms])
    ax.invert_yaxis()
    for y, arm in enumerate(arms):
        text = f"{masks[arm]['dice_change']['mean']:+.3f}, {100 * masks[arm]['moved']['mean']:.0f} % of area"
        ax.text(1.02, y, text, fontsize=FONT - 1, va="center", transform=ax.get_yaxis_transform())
    ax.axvline(0, color="black", linewidth=0.8)
    title = "Masks when knowledge (gray: something else) is exchanged"
    plain_axes(ax, "change of Dice, and how much of the masks' area moves", "", title)


def _fraction_bars(ax: Axes, shares: dict) -> None:
    """One bar per step, divided into what is the same everywhere and what differs."""
    bottom = np.zeros(len(shares))
    for (key, label), colour in zip(FRACTION_LABELS.items(), ("#bbbbbb", *DARK[:3]), strict=True):
        heights = np.array([shares[step][key]["mean"] for step in shares])
        ax.bar(range(len(shares)), heights, 0.7, bottom, color=colour, label=label)
        bottom += heights
    ax.set_xticks(range(len(STEP_LABELS)), STEP_LABELS)
    plain_axes(ax, "", "share of the mean square", "How varied each step is")
    ax.legend(**BELOW)
