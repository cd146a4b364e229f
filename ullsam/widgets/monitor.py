"""Training monitor: curves and example masks of a run that another process trains, read from the run's folder."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import ipywidgets
from matplotlib.figure import Figure

from ullsam.data.corpus import Sample
from ullsam.errors import InputError
from ullsam.model import ULLSAM
from ullsam.plots.charts import DPI, FONT, PANEL, Picture, show_curves
from ullsam.plots.images import panel_grid, show_masks
from ullsam.widgets.live import NATURAL, WRAP, Live, gesture, png_bytes
from ullsam.widgets.runs import Example, ExampleImage, RunFolder, read_checkpoint, stamp

CURVE_DPI = 100
KEPT = 4  # example masks shown: the first ones, and the latest
FIRST = ("loss", "dice_score", "caption", "spread")  # drawn until others are chosen
QUIET = 20  # a run silent for so many times its usual pause between log lines may have stopped


class TrainingMonitor(Live):
    """Curves of a run's log and, with a model and a sample, masks by its checkpoints; it only reads the folder.

    Another process trains, or this one with `fit(..., on_log=lambda line: monitor.refresh())`. Call `refresh` to look again,
    or `start` to look every few seconds while the notebook's kernel is free.

    Args:
        folder: what `fit` was given; it need not exist yet.
        model, sample: for example masks, see `ExampleImage`; None for curves alone.
        steps: the run's length; None reads it from the checkpoint once there is one.

    Raises:
        InputError: only one of model and sample, or a sample without objects.
    """

    def __init__(
        self, folder: str | Path, model: ULLSAM | None = None, sample: Sample | None = None, steps: int | None = None
    ):
        if (model is None) != (sample is None):
            raise InputError("Example masks need a model and a sample; give both or none.")
        self.run = RunFolder(folder)
        self.example = None if model is None else ExampleImage(model, sample)
        self.steps = self._given = steps
        self.keys, self.smooth = None, 9
        self.examples: list[Example] = []
        self.note = ""  # why there are no example masks
        self._seen: tuple | None = None  # of the checkpoint at the last look
        self._timer: asyncio.TimerHandle | None = None
        self._look()
        super().__init__()

    @gesture
    def refresh(self) -> None:
        """Looks for new lines and a new checkpoint."""
        self._look()

    @gesture
    def choose(self, keys: tuple[str, ...] | None) -> None:
        """The quantities to draw, of `known`; None for the usual ones."""
        if keys is not None and (missing := [k for k in keys if k not in self.known]):
            raise InputError(f"The log holds no {', '.join(missing)}; choose from {', '.join(self.known) or 'nothing yet'}.")
        self.keys = tuple(keys) if keys else None

    @gesture
    def set_smooth(self, lines: int) -> None:
        """The strong line is the mean of so many log lines; 1 for no smoothing."""
        if lines < 1:
            raise InputError(f"A mean of {lines} lines does not exist; give 1 or more.")
        self.smooth = int(lines)

    @gesture
    def start(self, seconds: float = 5.0) -> None:
        """Looks every `seconds` until `stop`, or until the run has finished."""
        if seconds <= 0:
            raise InputError(f"{seconds} seconds between looks is too short; give more than 0.")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise InputError("Only a notebook looks by itself; call refresh() instead.") from error
        self._cancel()
        self._timer = loop.call_later(seconds, self._tick, loop, seconds)

    @gesture
    def stop(self) -> None:
        """Looks no more by itself."""
        self._cancel()

    @property
    def live(self) -> bool:
        """It looks by itself."""
        return self._timer is not None

    @property
    def known(self) -> list[str]:
        """The quantities in the log, in its order."""
        return [k for k in dict.fromkeys(k for line in self.run.lines for k in line) if k not in ("step", "seconds")]

    def summary(self) -> str:
        """Where the run stands, in words."""
        lines, words = self.run.lines, []
        if not lines:
            return f"No log line in {self.run.folder} yet; waiting for a training run."
        step, loss = lines[-1]["step"], lines[-1].get("loss")
        words.append(f"Step {step}{f' of {self.steps}' if self.steps else ''}")
        words += [f"loss {loss:.4g}"] if loss is not None else []
        words.append("finished" if self.run.finished else self._pace_words(step))
        words += [f"{self.run.broken} unreadable line(s)"] if self.run.broken else []
        words += [self.note] if self.note else []
        return "; ".join(w.rstrip(".") for w in words if w) + "."

    def figure(self) -> Figure:
        """The curves, or where they will be."""
        if len(self.run.lines) < 2:
            return _words(self.summary())
        usual = [key for key in FIRST if key in self.known] or self.known[:3]
        return show_curves(self.run.lines, self.keys or usual, self.smooth)

    def examples_figure(self) -> Figure | None:
        """The example image with the masks of several checkpoints; None without any."""
        if not self.examples:
            return None
        sample, points = self.example.sample, (self.example.points, self.example.kinds)
        figure, (axes,) = panel_grid(1, len(self.examples) + 1, min(2.0, sample.image.shape[0] / sample.image.shape[1]))
        show_masks(sample.image, None, *points, title="image, points, truth in yellow", ax=axes[0], truth=sample.labels)
        for ax, found in zip(axes[1:], self.examples, strict=True):
            title = f"step {found.step}: Dice {found.dice:.2f}"
            show_masks(sample.image, found.masks, title=title, ax=ax, truth=sample.labels)
        return figure

    def _pace_words(self, step: int) -> str:
        pace, silent = self.run.pace(), self.run.silent
        if math.isnan(pace):
            return ""
        usual = pace * (self.run.lines[-1]["step"] - self.run.lines[-2]["step"])
        if silent > max(60.0, QUIET * usual):
            return f"no new line for {_span(silent)}, it may have stopped"
        left = f", about {_span(pace * (self.steps - step))} left" if self.steps and self.steps > step else ""
        return f"{pace:.2g} s per step{left}"

    def _look(self) -> None:
        self.run.refresh()
        path = self.run.folder / "checkpoint.pt"
        seen = stamp(path)
        if seen is None or seen == self._seen:
            return
        self._seen, self.note = seen, ""
        try:
            self.steps = self._given or read_checkpoint(path)["config"]["steps"]
            if self.example is not None:
                self._add(self.example.segment(path))
        except InputError as error:  # the curves do not need the checkpoint
            self.note = str(error)

    def _add(self, example: Example) -> None:
        """Keeps the first checkpoint's masks and the latest; those that a restart has overtaken go."""
        kept = [e for e in self.examples if e.step < example.step]
        self.examples = [*kept[:1], *kept[1:][-(KEPT - 2) :], example]

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _tick(self, loop, seconds: float) -> None:
        """One look by the timer; an error is in the status and the next look may succeed."""
        try:
            self._from_browser(self.refresh)()
        finally:
            self._timer = None if self.run.finished else loop.call_later(seconds, self._tick, loop, seconds)
            self._show(self.status)

    def _build_view(self) -> ipywidgets.Widget:
        image = {"format": "png", "layout": NATURAL}
        self._curves, self._masks = ipywidgets.Image(**image), ipywidgets.Image(**image)
        self._keys = self._on_value(ipywidgets.SelectMultiple(description="curves", rows=4), self.choose)
        self._smooth = self._on_value(
            ipywidgets.IntSlider(9, 1, 101, description="smooth", continuous_update=False), self.set_smooth
        )
        self._live = self._on_value(
            ipywidgets.ToggleButton(description="look every 5 s"), lambda on: self.start() if on else self.stop()
        )
        buttons = ipywidgets.VBox([self._live, self._button("Look now", self.refresh)])
        self._drawn = None
        row = ipywidgets.HBox([buttons, self._keys, self._smooth], layout=WRAP)
        return ipywidgets.VBox([self._line, row, self._curves, self._masks])

    def _draw(self) -> None:
        if self._keys.options != tuple(self.known):
            self._keys.options = tuple(self.known)
        self._keys.value, self._live.value, self._smooth.value = self.keys or (), self.live, self.smooth
        drawn = (self.run.seen, self._seen, self.keys, self.smooth)
        if drawn == self._drawn:  # nothing new to draw
            return
        self._drawn = drawn
        self._curves.value = png_bytes(self.figure(), CURVE_DPI)
        masks = self.examples_figure()
        self._masks.layout.display = "none" if masks is None else ""
        self._masks.value = b"" if masks is None else png_bytes(masks, CURVE_DPI)


def _span(seconds: float) -> str:
    for size, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"


def _words(text: str) -> Figure:
    figure = Picture(figsize=(2 * PANEL, PANEL / 2), dpi=DPI)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=FONT, wrap=True)
    return figure
