"""The control experiment on words: the same images and clicks, and only what the words say differs.

One click on a mitochondrion may mean the mitochondrion or the neurite around it. Every arm trains SAM's mask decoder and one
way of telling it the words; SAM alone, words that are shuffled, and a constant text are the controls.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ullsam.data.referring import keys, phrases, real_scenes
from ullsam.data.synthetic.named import KINDS, SPLITS, named_scene
from ullsam.evaluation.statistics import estimate, format_table, mean_of_known
from ullsam.evaluation.words import MIX, PRESENCE, TRAIN, Arm, Scenes, score_arm, test_requests, train_arm
from ullsam.files import read_json, write_json
from ullsam.model import ULLSAM
from ullsam.plots.charts import DPI, FONT, Picture, plain_axes
from ullsam.plots.overlays import DARK

KNOWN = [[*phrases(key), *phrases(key, held_out=True)] for key in keys()]
ARMS = {
    "none": Arm("none"),
    "class_id": Arm("class_id", {"classes": KNOWN}),
    "last_word": Arm("last_word"),
    "paper": Arm("paper"),
    "paper, not centred": Arm("paper", centred=False),
    "paper_film": Arm("paper_film"),
    "shuffled words": Arm("last_word", words="shuffled"),
    "constant words": Arm("last_word", words="constant"),
    "last_word, not centred": Arm("last_word", centred=False),
    "last_word, before the image": Arm("last_word", {"reads": "before"}),
    "layers": Arm("layers"),
    "film": Arm("film"),
    "cross_attention": Arm("cross_attention"),
    "residual": Arm("residual", {"gate": 0.5}),
    "tokens": Arm("tokens"),
}
NOTES = {
    "none": "SAM alone",
    "class_id": "a learned vector for each structure: what words could do at best",
    "paper": "the paper's module, words in its instruction, states centred",
    "paper, not centred": "the paper's module, words in its instruction",
    "shuffled words": "trained with the words of any structure in the image",
    "constant words": "trained without words",
}
LABELS = {"right": "right words", "held_out": "words never trained", "other": "words of the other", "none": "no words"}
REFUSED = 0.05  # the fraction of true requests that the threshold on validation images may refuse


@dataclass(frozen=True)
class Budget:
    """How much is trained and measured."""

    seeds: int
    steps: int
    train: int | None  # images of each data set
    test: int | None
    synthetic: tuple[int, int, int]  # painted images to train, choose and test with
    sets: tuple[str, ...] | None = ("vnc_mitochondria",)  # data sets, with those that share their images; None: all pairs
    painted: tuple[str, ...] = ("nested",)  # kinds of painted scenes, see data/synthetic/named.py
    arms: tuple[str, ...] = tuple(ARMS)


BUDGETS = {
    "smoke": Budget(1, 20, 2, 2, (4, 2, 2), arms=("none", "last_word", "paper", "paper, not centred")),
    "short": Budget(1, 300, 24, None, (24, 8, 12)),
    "full": Budget(3, 300, None, None, (48, 12, 24)),
    "wide": Budget(3, 3000, None, None, (120, 40, 60), None, tuple(KINDS)),
}


class WordsExperiment:
    """Runs arms and keeps each in a file of its own, so that a run goes on where it stopped.

    Args:
        model: gives features and states; budget: how much; folder: keeps the arms.
        root: folder of all data sets, None for painted images only; log: called with a sentence now and then.
    """

    def __init__(self, model: ULLSAM, budget: Budget, folder: str | Path, root: str | Path | None, log=print):
        self.model, self.budget, self.folder, self.root, self.log = model, budget, Path(folder), root, log

    def _scenes(self, split: str, limit: int | None, painted: int, count: int) -> Scenes:
        """Images of one split with their features and states: those of paired data sets, and painted ones."""
        b, start, number = self.budget, time.perf_counter(), SPLITS.index(split)
        found = real_scenes(self.root, split, b.sets, limit) if self.root else []
        found = [scene for scene in found if len(scene.structures) > 1]
        found += [named_scene(b.painted[i % len(b.painted)], 3 * i + number, 256, split) for i in range(painted)]
        scenes = Scenes(self.model, found, count, held_out=split != "train")
        self.log(f"states of {len(found)} images of the split {split}: {time.perf_counter() - start:.0f} s")
        return scenes

    @cached_property
    def data(self) -> dict[str, Scenes]:
        """Images by split, read once."""
        b = self.budget
        sizes = {
            "train": (b.train, b.synthetic[0], 8),
            "val": (b.test, b.synthetic[1], 4),
            "test": (b.test, b.synthetic[2], 4),
        }
        return {split: self._scenes(split, *values) for split, values in sizes.items()}

    def run(self, arms: Iterable[str] | None = None) -> dict:
        """All arms with all seeds; returns what `summarise` makes of them."""
        chosen, found = list(arms or self.budget.arms), {}
        for seed in range(self.budget.seeds):
            for name in chosen:
                path = self.folder / f"{re.sub(r'[ ,]+', '_', name)}-{seed}.json"
                if not path.is_file():
                    write_json(path, self._one(name, seed))
                found.setdefault(name, []).append(read_json(path))
        settings = replace(TRAIN, steps=self.budget.steps)
        return summarise(found) | {
            "budget": asdict(self.budget),
            "mix": MIX,
            "presence_weight": PRESENCE,
            "train": asdict(settings),
        }

    def _one(self, name: str, seed: int) -> dict:
        logs, data, start = [], self.data, time.perf_counter()
        net = train_arm(data["train"], ARMS[name], seed, replace(TRAIN, steps=self.budget.steps, log_every=25), logs.append)
        trained = time.perf_counter() - start
        val, test = (score_arm(data[split], net, test_requests(data[split])) for split in ("val", "test"))
        self.log(f"{name}, seed {seed}: trained in {trained:.0f} s, scored in {time.perf_counter() - start - trained:.0f} s")
        return {"arm": name, "seed": seed, "seconds": round(trained, 1), "log": logs, "val": val, "test": test}


def summarise(found: dict[str, list[dict]]) -> dict:
    """What the arms of all seeds say.

    Returns:
        rows: for each arm, group of images (data set, or "synthetic"), task and key an estimate {mean, interval, n} of Dice
        under each condition, over images (means over their requests and seeds). differences: the same of Dice with the right
        words minus that of "none", paired by image. presence: for each arm the threshold, and on test images the fractions
        refused (of absent words) and false_refusals.
    """
    rows, differences = [], []
    for arm, runs in found.items():
        asked = sorted({(_group(r), r["task"], r["key"]) for run in runs for r in run["test"] if r["task"] != "absent"})
        for what in asked:
            labels = {"arm": arm} | dict(zip(("group", "task", "key"), what, strict=True))
            means = {c: _by_image(runs, c, *what) for c in LABELS}
            rows.append(labels | {c: estimate(x.values()) for c, x in means.items() if x})
            theirs = _by_image(found.get("none", ()), "right", *what)
            if theirs and arm != "none":
                differences.append(labels | {"difference": estimate([x - theirs[i] for i, x in means["right"].items()])})
    presence = [{"arm": arm} | _presence(runs) for arm, runs in found.items()]
    return {"rows": rows, "differences": differences, "presence": presence}


def _group(row: dict) -> str:
    return row["scene"].split("/")[0]


def _by_image(runs: Sequence[dict], condition: str, group: str, task: str, key: str | None) -> dict[str, float]:
    """Mean Dice of each image, over its requests and over seeds."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for r in run["test"]:
            if condition in r and _group(r) == group and r["task"] == task and key in (None, r["key"]):
                found.setdefault(r["scene"], []).append(r[condition])
    return {scene: float(np.mean(values)) for scene, values in found.items()}


def _presence(runs: Sequence[dict]) -> dict:
    """Refusals at the threshold that refuses REFUSED of the true requests of validation images; means over seeds."""

    def scores(rows: Sequence[dict], absent: bool) -> np.ndarray:
        return np.array([r["presence_right"] for r in rows if (r["task"] == "absent") == absent])

    found = []
    for run in runs:
        threshold = float(np.quantile(scores(run["val"], False), REFUSED))
        refused = [float((scores(run["test"], absent) < threshold).mean()) for absent in (True, False)]
        found.append((threshold, *refused))
    return dict(zip(("threshold", "refused", "false_refusals"), np.mean(found, axis=0).tolist(), strict=True))


def mean_rows(result: dict) -> list[dict]:
    """One row per arm: mean Dice over the groups of images, for clicks and for words alone, and refusals."""
    rows, refusals = [], {row["arm"]: row for row in result["presence"]}
    for arm, task in itertools.product(dict.fromkeys(row["arm"] for row in result["rows"]), ("click", "words")):
        some = [row for row in result["rows"] if (row["arm"], row["task"]) == (arm, task)]
        row = {"arm": arm, "asked by": {"click": "one click and words", "words": "words alone"}[task]}
        for condition, label in LABELS.items():
            row[label] = mean_of_known(x[condition]["mean"] if condition in x else None for x in some)
        last = {"absent, refused": refusals[arm]["refused"], "false refusals": refusals[arm]["false_refusals"]}
        rows.append(row | (last if task == "words" else dict.fromkeys(last)))
    return rows


def table(result: dict) -> str:
    """The mean rows as text, and those of each group of images."""
    each = [
        {k: row[k] for k in ("arm", "group", "task", "key")}
        | {label: row[c]["mean"] if c in row else None for c, label in LABELS.items()}
        | {"images": row["right"]["n"]}
        for row in result["rows"]
    ]
    return f"{format_table(mean_rows(result))}\n\n{format_table(each)}"


def draw(result: dict):
    """Dice of every arm with the right words, with words never trained with, and with those of the other meaning."""
    rows = [row for row in mean_rows(result) if row["asked by"] == "one click and words"]
    figure = Picture(figsize=(7.2, 0.34 * len(rows) + 1.1), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    marks = {"right": ("o", DARK[0]), "held_out": ("D", DARK[2]), "other": ("x", DARK[1]), "none": ("|", "#666666")}
    for condition, (mark, colour) in marks.items():
        label = LABELS[condition]
        ax.plot([row[label] for row in rows], range(len(rows)), mark, color=colour, label=label, markersize=7)
    ax.set_yticks(range(len(rows)), [row["arm"] for row in rows])
    ax.invert_yaxis()
    ax.grid(axis="y", color="#dddddd")
    plain_axes(ax, "Dice with what the right words mean", "", "One click that can mean two things, and words")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=FONT)
    return figure
