"""What the measured tables say: means, intervals over images, and each claim of the paper beside our numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ullsam.errors import InputError
from ullsam.evaluation.statistics import bootstrap
from ullsam.lab.arms import DOMAINS, QUESTION_TYPES, QUESTIONS, Row, Table

SMALL = 0.005  # Dice; the intervals are over images and do not hold what another seed changes
METRICS = ("dice", "sa")
IMAGES = {"random": "own", "tiny": "own none shuffled"}  # model -> what `microvqa` shows it for Table 6
LABELS = {"own": "uLLSAM, its image", "none": "uLLSAM, no image", "shuffled": "uLLSAM, another image"}
Sets = dict[str, np.ndarray]  # set -> (seeds, images, 2): Dice and SA


@dataclass(frozen=True)
class Verdict:
    """One claim ("better beats worse", in Dice) and what was measured here."""

    better: str
    worse: str
    paper: float | None  # difference in the paper
    ours: float  # difference here, mean over seeds and datasets
    low: float  # 95 % interval over images
    high: float
    asked: str = "paper"  # who claims it, see `Claim`

    @property
    def word(self) -> str:
        """Whether the sign here is that of the claim; a difference below SMALL tells nothing."""
        return "cannot tell" if abs(self.ours) < SMALL else _judge(self.low, self.high, 0)

    @property
    def finding(self) -> str:
        """What the paper gives, if anything, and the word; for what only we ask, which row is better."""
        if self.asked == "us":
            return f"not compared in the paper: {({'agrees': 'better', 'disagrees': 'worse'}).get(self.word, self.word)}"
        stated = "no number in the paper" if self.paper is None else f"in the paper {self.paper:+.3f}"
        return f"{stated}: {self.word}"


def _judge(low: float, high: float, level: float) -> str:
    """Whether an interval lies above a level, as was claimed."""
    return "agrees" if low > level else "disagrees" if high < level else "cannot tell"


def scores(row: Row, results: dict) -> Sets:
    """Dice and SA of each image of a row, over the seeds that were measured; {} where none was."""
    seeds = results["rows"].get(row.key, {})
    if not seeds:
        return {}
    images = results["images"][row.role]
    values = np.array([[seeds[s][m] for m in METRICS] for s in sorted(seeds)]).transpose(0, 2, 1)  # (seeds, images, 2)
    names = [name if row.images not in DOMAINS or domain == row.images else None for name, domain, _ in images]
    return {name: values[:, [n == name for n in names]] for name in dict.fromkeys(names) if name}


def mean_score(sets: Sets) -> np.ndarray:
    """Dice and SA, (2,): means over seeds and images of each set, then over sets."""
    return np.mean([values.mean((0, 1)) for values in sets.values()], axis=0)


def interval(sets: Sets) -> np.ndarray:
    """95 % bootstrap interval of `mean_score`, (2 ends, 2): low and high of Dice and SA; images are drawn in each set."""
    samples = [values.mean(0).T for values in sets.values()]  # (2, images) each
    return bootstrap(samples, lambda *drawn, axis: np.mean([sample.mean(axis) for sample in drawn], axis=0))


def difference(a: Sets, b: Sets) -> tuple[float, float, float]:
    """Mean Dice of a minus that of b, and its 95 % bootstrap interval; images are paired."""
    gaps = {name: (a[name].mean(0) - b[name].mean(0))[None] for name in a}  # (1, images, 2), mean over seeds
    return float(mean_score(gaps)[0]), *map(float, interval(gaps)[:, 0])


def verdicts(table: Table, results: dict) -> list[Verdict]:
    """Every claim of a table whose two rows were measured."""
    rows, found = {row.label: row for row in table.rows}, []
    for claim in table.claims:
        better, worse = rows[claim.better], rows[claim.worse]
        a, b = scores(better, results), scores(worse, results)
        if a and b:
            stated = better.paper[0] - worse.paper[0] if better.paper and worse.paper else claim.paper
            found.append(Verdict(claim.better, claim.worse, stated, *difference(a, b), claim.asked))
    return found


def summary(claims: Sequence[Verdict]) -> str:
    """One plain sentence: how many of the paper's claims the measurements agree with; "" where there are none."""
    words = [claim.word for claim in claims if claim.asked == "paper"]
    counts = ", ".join(f"{word} {words.count(word)}" for word in ("agrees", "disagrees", "cannot tell") if word in words)
    return f"The paper's claims that were measured here: {len(words)} ({counts})." if words else ""


@dataclass(frozen=True)
class Answers:
    """Fractions of right answers of one way to ask: overall with its 95 % interval, and of the three types of question."""

    label: str
    values: tuple[float, ...]  # of QUESTION_TYPES
    interval: tuple[float, float]
    chance: float  # what choosing at random gives on average


def read_answers(folder: str | Path) -> list[Answers]:
    """What Table 6 needs, random choice first.

    Args:
        folder: holds microvqa_tiny.json and microvqa_random.json.

    Raises:
        InputError: a file is missing, with the command that makes it.
    """
    files, answers = {model: Path(folder) / f"microvqa_{model}.json" for model in IMAGES}, []
    options = [
        f"--model {m} --count 120 --image {IMAGES[m]} --out {path}" for m, path in files.items() if not path.is_file()
    ]
    if options:
        commands = [f"`python -m ullsam microvqa {words}`" for words in options]
        raise InputError(f"Table 6 lacks what the model answered; make it with {' and '.join(commands)}.")
    for model, path in files.items():
        found = json.loads(path.read_text(encoding="utf-8"))
        for run in found.get("results", [found]):
            types = {part["letter"]: part["accuracy"] for part in run["per_task"].values()}
            values = (run["accuracy"], *(types[letter] for letter in QUESTION_TYPES[1:]))
            label = "random choice" if model == "random" else LABELS[run["image"]]
            answers.append(Answers(label, values, tuple(run["interval"]), run["chance"]))
    return answers


def better_than_chance(answers: Sequence[Answers]) -> str:
    """One plain sentence on whether the model answers better than chance."""
    own = next(answer for answer in answers if answer.label == LABELS["own"])
    (low, high), paper = own.interval, [QUESTIONS[name][0] for name in ("uLLSAM", "random choice")]
    return (
        f"Better than chance with its image: {own.values[0]:.3f} ({low:.3f} to {high:.3f}) against {own.chance:.3f}, "
        f"in the paper {paper[0]:.3f} against {paper[1]:.3f}: {_judge(low, high, own.chance)}."
    )
