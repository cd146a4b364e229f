"""The folder of a training run, read while another process writes it: log lines, and masks by its checkpoints."""

from __future__ import annotations

import json
import math
import pickle
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ullsam.data.corpus import Sample
from ullsam.errors import InputError
from ullsam.evaluation.metrics import instance_scores
from ullsam.model import ULLSAM
from ullsam.predictor import Predictor
from ullsam.sbr import sample_instances
from ullsam.train import STAGES

OBJECTS = 8  # at most so many objects of the example image


class RunFolder:
    """What a run of `fit` has written so far; a missing folder is a run that has not begun.

    `lines` are the log's complete lines in the order of their steps. Where a run was restarted, the lines after the point
    it went on from are dropped, as `fit` itself does.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.lines: list[dict] = []
        self.broken = 0  # complete lines that are no log line
        self.seen: tuple | None = None  # time, size and inode of the log at the last look

    def refresh(self) -> bool:
        """Looks at the log; True if it has changed."""
        seen = stamp(self.folder / "log.jsonl")
        if seen == self.seen:
            return False
        self.lines, self.broken = _parse(self._content())
        self.seen = seen
        return True

    @property
    def finished(self) -> bool:
        """The model was saved after the last line, which is the last thing that `fit` does."""
        model, log = stamp(self.folder / "config.json"), stamp(self.folder / "log.jsonl")
        return bool(model and log and self.lines) and model[0] >= log[0]

    @property
    def silent(self) -> float:
        """Seconds since the log changed; 0 without a log."""
        seen = stamp(self.folder / "log.jsonl")
        return max(0.0, time.time() - seen[0] / 1e9) if seen else 0.0

    def pace(self, last: int = 20) -> float:
        """Seconds per step over the last lines; NaN where they do not tell."""
        timed = [(line["step"], line["seconds"]) for line in self.lines[-last:] if "seconds" in line]
        if len(timed) < 2:
            return math.nan
        (first, start), (final, end) = timed[0], timed[-1]
        return (end - start) / (final - first)

    def _content(self) -> bytes:
        try:
            return (self.folder / "log.jsonl").read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise InputError(f"{self.folder / 'log.jsonl'} cannot be read ({error.strerror}); check the folder.") from error


def stamp(path: Path) -> tuple[int, int, int] | None:
    """(time of change in ns, size, inode) of a file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _parse(content: bytes) -> tuple[list[dict], int]:
    """Log lines and the number of broken ones; what follows the last line end is still being written."""
    lines, broken = [], 0
    for raw in content.split(b"\n")[:-1]:
        try:
            line = json.loads(raw)
        except ValueError:
            line = None
        if not _is_log_line(line):
            broken += bool(raw.strip())
            continue
        while lines and lines[-1]["step"] >= line["step"]:  # a restart
            lines.pop()
        lines.append(line)
    return lines, broken


def _is_log_line(line) -> bool:
    return isinstance(line, dict) and "step" in line and all(isinstance(v, int | float) for v in line.values())


@dataclass(frozen=True)
class Example:
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
        ids = sample_instances(sample.labels, np.random.default_rng(0), OBJECTS)
        if not len(ids[0]):
            raise InputError("The example image has no object to segment; give a sample with instances.")
        self.ids, self.points, self.kinds = ids

    def segment(self, checkpoint: Path) -> Example:
        """The masks by a checkpoint's weights.

        Raises:
            InputError: the checkpoint cannot be read, trains no masks, or is of another model.
        """
        state = read_checkpoint(checkpoint)
        if STAGES[state["config"]["stage"]].targets != "prompts":
            raise InputError("Example masks come with stage 3; this run trains other parts.")
        with _weights(self.model, state["model"]):
            predictor = Predictor(self.model)
            predictor.set_image(self.sample.image)
            masks = predictor.predict(self.points, self.kinds).masks
        return Example(state["step"], masks, float(instance_scores(masks, self.sample.labels, self.ids)[0].mean()))


def read_checkpoint(path: Path) -> dict:
    """A checkpoint of `fit`: config, step, model and more; weights are read from the file when they are used."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state["config"]["steps"], state["step"], state["model"]
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}); wait for the run's next checkpoint.") from error
    return state


@contextmanager
def _weights(model: nn.Module, state: dict[str, Tensor]):
    """Inside, the model has the weights in `state`; afterwards its own again. What the model lacks is passed over."""
    own = {name: p for name, p in model.named_parameters() if name in state}
    wrong = [name for name, p in own.items() if p.shape != state[name].shape]
    if wrong or not own:
        raise InputError(
            f"The checkpoint is of another model ({(wrong or ['no common part'])[0]}); give the model that is trained."
        )
    before, training = {name: p.data for name, p in own.items()}, model.training
    try:
        for name, p in own.items():
            p.data = state[name].to(p.device, p.dtype)
        yield
    finally:
        for name, p in own.items():
            p.data = before[name]
        model.train(training)
