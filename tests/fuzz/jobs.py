"""Work that is killed at random moments again and again: python jobs.py JOB FOLDER KILLS SEED, see test_killed.py.

The libraries are loaded once; each attempt is a forked process that gets SIGKILL, or finishes. Everything that computes is
forked, so that this process stays small and simple.
"""

import csv
import json
import os
import random
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import tifffile
import torch

from ullsam import ULLSAM, Corpus, Mixture, Predictor, TrainConfig, fit
from ullsam.cli import main as command_line
from ullsam.data.io import read_image, read_lines
from ullsam.data.sources.convert import Item, prepare
from ullsam.data.synthetic import generate
from ullsam.evaluation.protocol import SCORES
from ullsam.files import read_torch
from ullsam.lab import baselines
from ullsam.widgets.export import EXPORT_FORMATS, export
from ullsam.widgets.instances import Annotations
from ullsam.widgets.session import ClickSession

SIDE, COUNT = 64, 12


def same_files(one: Path, two: Path) -> bool:
    """Both folders hold the same files with the same bytes."""
    names = [sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()) for folder in (one, two)]
    return names[0] == names[1] and all((one / name).read_bytes() == (two / name).read_bytes() for name in names[0])


class Train:
    """Steps of a small model; what counts as done is the last checkpoint."""

    def run(self, folder, tell):
        config = TrainConfig(steps=COUNT, batch_size=2, warmup=1, instances=2, log_every=1, save_every=2)
        model = ULLSAM.from_preset("debug", vlsa_options={"dropout": 0.2})
        styles = Mixture([], ["fluorescence_nuclei"], 1.0, synthetic_size=SIDE)
        fit(model, config, styles, folder, progress=False, on_log=lambda line: tell(line["step"]))

    def check(self, folder, told):
        if told and max(told) > 2:
            assert read_torch(folder / "checkpoint.pt")["step"] >= 2 * ((max(told) - 1) // 2)

    def compare(self, whole, killed):
        first, second = (ULLSAM.from_pretrained(folder).state_dict() for folder in (whole, killed))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert [line["step"] for line in read_lines(killed / "log.jsonl")] == list(range(1, COUNT + 1))


class Squares:
    """A predictor that draws a square at the click."""

    model = SimpleNamespace(config=SimpleNamespace(name="squares"), vlsa=None, llm=None)

    def set_image(self, image):
        self.size = image.shape[:2]

    def predict(self, points, **_):
        (x, y), mask = points[-1].astype(int), np.zeros((1, *self.size), bool)
        mask[0, y : y + 5, x : x + 5] = True
        return SimpleNamespace(masks=mask)


class Instances:
    """Objects that a person clicks and saves."""

    def session(self, folder):
        folder.mkdir(exist_ok=True)
        return ClickSession(Squares(), np.zeros((200, 200), np.uint8), project=folder / "work.json")

    def run(self, folder, tell):
        session = self.session(folder)
        for number in range(len(session.instances), 10 * COUNT):
            session.click(20 * (number % 10), 15 * (number // 10))
            tell(session.save_instance())

    def check(self, folder, told):
        numbers = [i.number for i in self.session(folder).instances]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) - max(told, default=0) in (0, 1)

    def compare(self, whole, killed):
        assert np.array_equal(*(self.session(folder).labels for folder in (whole, killed)))


class Export:
    """All formats of several images, into one folder."""

    def run(self, folder, tell):
        for k in range(COUNT):
            sample = generate("fluorescence_nuclei", k, SIDE)
            export(Annotations(f"image{k:02}", {0: sample.image}, {0: sample.labels}, {}), folder, EXPORT_FORMATS)
            tell(k)

    def check(self, folder, told):
        read = {
            ".tif": tifffile.imread,
            ".png": read_image,
            ".json": lambda path: json.loads(path.read_text()),
            ".csv": lambda path: list(csv.DictReader(path.open())),
            ".zip": lambda path: zipfile.ZipFile(path).testzip(),
        }
        for path in (p for p in folder.rglob("*") if p.suffix in read):
            read[path.suffix](path)
        if told:
            corpus = Corpus(folder / "corpus")
            files = {record.file for record in corpus.records if corpus.read(record).labels.any()}
            assert files >= {f"image{k:02}.png" for k in told}

    def compare(self, whole, killed):
        assert same_files(whole / "corpus", killed / "corpus")
        assert sorted(p.name for p in whole.iterdir()) == sorted(p.name for p in killed.iterdir())


class Evaluate:
    """Scores of images, from the command line."""

    def run(self, folder, tell):
        class Telling(Predictor):
            def set_image(self, image):
                tell(1)
                super().set_image(image)

        tell(0)
        model, corpus = folder.parent / "model", folder.parent / "corpus"
        if not model.exists():
            ULLSAM.from_preset("debug").save_pretrained(model)
            prepare(items(), corpus, {"name": "n"}, {"ood": COUNT})
        baselines.Predictor = Telling
        line = ["evaluate", "--model", str(model), "--data", str(corpus), "--out", str(folder / "r.json")]
        assert command_line(line) == 0

    def check(self, folder, told):
        rows = [row for path in folder.glob("r.json.rows*") for row in read_lines(path)]
        attempts, begun = told.count(0), told.count(1)
        assert (folder / "r.json").exists() or len(rows) >= begun - attempts  # each lost one at most

    def compare(self, whole, killed):
        first, second = (json.loads((folder / "r.json").read_text()) for folder in (whole, killed))
        assert [first[name] for name in SCORES] == [second[name] for name in SCORES]
        assert [p.name for p in killed.iterdir()] == ["r.json"]


def items() -> list[Item]:
    """Images of a dataset before they are read."""

    def load(k):
        sample = generate("fluorescence_nuclei", k, SIDE)
        return cv2.cvtColor(sample.image, cv2.COLOR_RGB2GRAY), sample.labels

    return [Item(str(k), None, str(k), lambda k=k: load(k)) for k in range(COUNT)]


class PrepareData:
    """A dataset that becomes a corpus: there as a whole, or not at all."""

    def run(self, folder, tell):
        if not (folder / "corpus").exists():
            prepare(items(), folder / "corpus", {"name": "n"}, {"train": 6, "val": 2, "test": 2})

    def check(self, folder, told):
        if (folder / "corpus").exists():
            corpus = Corpus(folder / "corpus")
            assert len(corpus) == corpus.meta["n_images"] and all(corpus.read(r).labels.any() for r in corpus.records)

    def compare(self, whole, killed):
        assert same_files(whole, killed)


JOBS = {job.__name__: job for job in (Train, Instances, Export, Evaluate, PrepareData)}


def forked(act, seconds: float | None = None) -> tuple[bool, list[int]]:
    """Runs act(tell) in a process of its own, killed after so many seconds: whether it finished, and what it told."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            act(lambda number: os.write(writing, f"{number}\n".encode()))
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    os.close(writing)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a process failed, see above")
    with os.fdopen(reading) as lines:
        return os.WIFEXITED(status), [int(line) for line in lines]


def main(name: str, folder: str, kills: str, seed: str) -> None:
    """Kills the job so often, checks what is left each time, lets it finish and compares with a run that was not killed."""
    job, rng, whole, killed = JOBS[name](), random.Random(int(seed)), Path(folder, "whole"), Path(folder, "killed")
    whole.mkdir(parents=True)
    start = time.monotonic()
    forked(lambda tell: job.run(whole, tell))
    seconds, count, told = time.monotonic() - start, 0, []
    while count < int(kills):
        killed.mkdir(exist_ok=True)
        finished, now = forked(lambda tell: job.run(killed, tell), rng.uniform(0, seconds))
        told += now
        forked(lambda _, told=tuple(told): job.check(killed, told))
        if finished:  # too late to kill it: another one
            forked(lambda _: job.compare(whole, killed))
            shutil.rmtree(killed)
            told = []
        count += not finished
    killed.mkdir(exist_ok=True)
    forked(lambda tell: job.run(killed, tell))
    forked(lambda _: job.compare(whole, killed))
    print(count)


if __name__ == "__main__":
    main(*sys.argv[1:])
