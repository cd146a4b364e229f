"""Training monitor: curves and example masks of a run that another process trains, read from the run's folder."""

from __future__ import annotations

import asyncio
import json
import pickle
import time
from pathlib import Path
from typing import NamedTuple

import ipywidgets
import numpy as np
import torch
from matplotlib.figure import Figure

from ullsam.data.corpus import Sample
from ullsam.errors import InputError
from ullsam.evaluation.metrics import instance_scores
from ullsam.model import ULLSAM
from ullsam.plots.charts import DPI, FONT, PANEL, Picture, show_curves
from ullsam.plots.images import panel_grid, show_masks
from ullsam.predictor import Predictor
from ullsam.sbr import sample_instances
from ullsam.widgets.live import WRAP, Live, gesture, png_bytes, still

OBJECTS = 8  # at most so many objects of the example image
CURVE_DPI = 100
KEPT = 4  # example masks shown: the first ones, and the latest
FIRST = ("loss", "dice_score", "caption", "spread")  # drawn until others are chosen
LAST = 20  # lines that tell the pace
QUIET = 20  # a run silent for so many times its usual pause between log lines may have stopped


class RunFolder:
    """What a run of `fit` has written so far; a missing folder is a run that has not begun."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.log = self.folder / "log.jsonl"
        self.lines: list[dict] = []  # see `parse_log`
        self.broken = 0  # complete lines that are no log line
        self.known: tuple | None = None  # time, size and inode of the log when it was last read

    def refresh(self) -> bool:
        """Looks at the log; True if it has changed."""
        known = stamp(self.log)
        if known == self.known:
            return False
        try:
            content = self.log.read_bytes() if known else b""
        except OSError as error:
            raise InputError(f"{self.log} cannot be read ({error.strerror}); check the folder.") from error
        self.lines, self.broken = parse_log(content)
        self.known = known
        return True

    @property
    def finished(self) -> bool:
        """The model was saved after the last line, which is the last thing that `fit` does."""
        model, log = stamp(self.folder / "config.json"), stamp(self.log)
        return bool(model and log and self.lines) and model[0] >= log[0]

    def progress(self, steps: int | None) -> str:
        """How fast it goes and, if its number of steps is known, how long it will take, in words."""
        timed, log = [(line["step"], line["seconds"]) for line in self.lines[-LAST:] if "seconds" in line], stamp(self.log)
        if len(timed) < 2 or log is None:
            return ""
        (first, start), (final, end) = timed[0], timed[-1]
        pace = (end - start) / (final - first)
        silent, step = max(0.0, time.time() - log[0] / 1e9), self.lines[-1]["step"]
        if silent > max(60.0, QUIET * pace * (step - self.lines[-2]["step"])):
            return f"no new line for {_span(silent)}, it may have stopped"
        left = f", about {_span(pace * (steps - step))} left" if steps and steps > step else ""
        return f"{pace:.2g} s per step{left}"


def stamp(path: Path) -> tuple[int, int, int] | None:
    """(time of change in ns, size, inode) of a file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def parse_log(content: bytes) -> tuple[list[dict], int]:
    """Complete log lines by ascending step, and the number of broken ones.

    Where a run was restarted, the lines after the point that it went on from are dropped, as `fit` itself does.
    """
    lines, broken = [], 0
    for raw in content.split(b"\n")[:-1]:  # what follows the last line end is still being written
        try:
            line = json.loads(raw)
        except ValueError:
            line = None
        if not isinstance(line, dict) or "step" not in line or not all(isinstance(v, int | float) for v in line.values()):
            broken += bool(raw.strip())
            continue
        while lines and lines[-1]["step"] >= line["step"]:  # a restart
            lines.pop()
        lines.append(line)
    return lines, broken


class Example(NamedTuple):
    """Masks of the example image by the weights of one checkpoint."""

    step: int
    masks: np.ndarray  # bool (I, H, W)
    dice: float  # mean over the I objects


class ExampleImage:
    """An image with known instances that a run's checkpoints segment, always with the same SBR points.

    Args:
        model: as the run began: same preset, same weights in all that the run does not train. It is left unchanged.
        sample: image and labels.
    """

    def __init__(self, model: ULLSAM, sample: Sample):
        self.model, self.sample = model, sample
        rng = np.random.default_rng(0)
        self.ids, self.points, self.point_labels = sample_instances(sample.labels, rng, OBJECTS)
        if not len(self.ids):
            raise InputError("The example image has no object to segment; give a sample with instances.")

    def segment(self, checkpoint: Path) -> Example:
        """The masks by a checkpoint's weights; `InputError` where it trains no masks or is of another model."""
        state = read_checkpoint(checkpoint)
        if state["config"]["stage"] != 3:
            raise InputError("Example masks come with stage 3; this run trains other parts.")
        weights = state["model"]
        own = {name: p for name, p in self.model.named_parameters() if name in weights}
        wrong = [name for name, p in own.items() if p.shape != weights[name].shape]
        if wrong or not own:
            part = (wrong or ["no common part"])[0]
            raise InputError(f"The checkpoint is of another model ({part}); give the model that is trained.")
        before, training = {name: p.data for name, p in own.items()}, self.model.training
        try:
            for name, p in own.items():
                p.data = weights[name].to(p.device, p.dtype)
            predictor = Predictor(self.model)
            predictor.set_image(self.sample.image)
            masks = predictor.predict(self.points, self.point_labels).masks
        finally:  # the model has its own weights again
            for name, p in own.items():
                p.data = before[name]
            self.model.train(training)
        return Example(state["step"], masks, float(instance_scores(masks, self.sample.labels, self.ids)[0].mean()))


def read_checkpoint(path: Path) -> dict:
    """A checkpoint of `fit`: config, step, model and more; weights are read from the file when they are used."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state["config"]["steps"], state["step"], state["model"]
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}); wait for the run's next checkpoint.") from error
    return state


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

    def __init__(self, folder: str | Path, model: ULLSAM | None = None, sample: Sample | None = None, steps=None):
        if (model is None) != (sample is None):
            raise InputError("Example masks need a model and a sample; give both or none.")
        self.run = RunFolder(folder)
        self.example = None if model is None else ExampleImage(model, sample)
        self.steps = self._given = steps
        self.keys, self.smooth = None, 9
        self.examples: list[Example] = []
        self.note = ""  # why there are no example masks
        self._known: tuple | None = None  # of the checkpoint at the last look
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
        self.stop()
        self._timer = loop.call_later(seconds, self._tick, loop, seconds)

    @gesture
    def stop(self) -> None:
        """Looks no more by itself."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    live = property(lambda self: self._timer is not None, doc="It looks by itself.")

    @property
    def known(self) -> list[str]:
        """The quantities in the log, in its order."""
        return [k for k in dict.fromkeys(k for line in self.run.lines for k in line) if k not in ("step", "seconds")]

    def summary(self) -> str:
        """Where the run stands, in words."""
        if not self.run.lines:
            return f"No log line in {self.run.folder} yet; waiting for a training run."
        line = self.run.lines[-1]
        words = [f"Step {line['step']}{f' of {self.steps}' if self.steps else ''}"]
        words += [f"loss {line['loss']:.4g}"] if "loss" in line else []
        words.append("finished" if self.run.finished else self.run.progress(self.steps))
        words += [f"{self.run.broken} unreadable line(s)"] if self.run.broken else []
        return "; ".join(w.rstrip(".") for w in [*words, self.note] if w) + "."

    def figure(self) -> Figure:
        """The curves, or where they will be."""
        if len(self.run.lines) < 2:
            figure = Picture(figsize=(2 * PANEL, PANEL / 2), dpi=DPI)
            figure.text(0.5, 0.5, self.summary(), ha="center", va="center", fontsize=FONT, wrap=True)
            return figure
        usual = [key for key in FIRST if key in self.known] or self.known[:3]
        return show_curves(self.run.lines, self.keys or usual, self.smooth)

    def examples_figure(self) -> Figure | None:
        """The example image with the masks of several checkpoints; None without any."""
        if not self.examples:
            return None
        sample, points = self.example.sample, (self.example.points, self.example.point_labels)
        figure, (axes,) = panel_grid(1, len(self.examples) + 1, min(2.0, sample.image.shape[0] / sample.image.shape[1]))
        show_masks(sample.image, None, *points, title="image, points, truth in yellow", ax=axes[0], truth=sample.labels)
        for ax, found in zip(axes[1:], self.examples, strict=True):
            title = f"step {found.step}: Dice {found.dice:.2f}"
            show_masks(sample.image, found.masks, title=title, ax=ax, truth=sample.labels)
        return figure

    def _look(self) -> None:
        self.run.refresh()
        path = self.run.folder / "checkpoint.pt"
        known = stamp(path)
        if known is None or known == self._known:
            return
        self._known, self.note = known, ""
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

    def _tick(self, loop, seconds: float) -> None:
        """One look by the timer; an error is in the status and the next look may succeed."""
        try:
            self._from_browser(self.refresh)()
        finally:
            self._timer = None if self.run.finished else loop.call_later(seconds, self._tick, loop, seconds)
            self._show(self.status)

    def _build_view(self) -> ipywidgets.Widget:
        self._curves, self._masks = still(), still()
        self._keys = self._on_value(ipywidgets.SelectMultiple(description="curves", rows=4), self.choose)
        smooth = ipywidgets.IntSlider(9, 1, 101, description="smooth", continuous_update=False)
        self._smooth = self._on_value(smooth, self.set_smooth)
        live = ipywidgets.ToggleButton(description="look every 5 s")
        self._live = self._on_value(live, lambda on: self.start() if on else self.stop())
        buttons = ipywidgets.VBox([self._live, self._button("Look now", self.refresh)])
        self._drawn = None
        row = ipywidgets.HBox([buttons, self._keys, self._smooth], layout=WRAP)
        return ipywidgets.VBox([self._line, row, self._curves, self._masks])

    def _draw(self) -> None:
        if self._keys.options != tuple(self.known):
            self._keys.options = tuple(self.known)
        self._keys.value, self._live.value, self._smooth.value = self.keys or (), self.live, self.smooth
        drawn = (self.run.known, self._known, self.keys, self.smooth)
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
