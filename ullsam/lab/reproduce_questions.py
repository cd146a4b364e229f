"""Table 6 at tiny scale: the answers that `python -m ullsam microvqa` wrote, beside the paper's numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ullsam.errors import InputError
from ullsam.lab.markdown import table_head, table_row

FILES = {"tiny": "microvqa_tiny.json", "random": "microvqa_random.json"}
COMMANDS = (
    "python -m ullsam microvqa --model tiny --count 120 --image own none shuffled --out data/results/microvqa_tiny.json",
    "python -m ullsam microvqa --model random --count 120 --image own --out data/results/microvqa_random.json",
)
KINDS = ("all", "V", "H", "E")  # V perception, H hypotheses, E proposals of experiments
PAPER = {
    "random choice": (0.220, 0.219, 0.218, 0.219),
    "InternVL2.5-2B": (0.356, 0.351, 0.336, 0.400),
    "uLLSAM": (0.390, 0.392, 0.361, 0.438),
}
LABELS = {"own": "uLLSAM, its image", "none": "uLLSAM, no image", "shuffled": "uLLSAM, another image"}
NOTE = (
    "Ours are made-up questions about synthetic images, a stand-in for MicroVQA: only the direction can be compared. The "
    "paper compares uLLSAM with its base model (+0.034), which tiny cannot: its language model alone sees no image."
)


@dataclass(frozen=True)
class Answers:
    """Shares of right answers of one way to ask: overall with its 95 % interval, and of the three kinds."""

    label: str
    values: tuple[float, ...]  # of KINDS
    interval: tuple[float, float]
    chance: float  # what choosing at random gives on average


def read_answers(folder: str | Path) -> list[Answers]:
    """What was measured, random choice first.

    Args:
        folder: holds FILES.

    Raises:
        InputError: a file is missing, with the commands that make them.
    """
    missing = [name for name in FILES.values() if not (Path(folder) / name).is_file()]
    if missing:
        raise InputError(f"Table 6 needs {' and '.join(missing)} in {folder}; make them with `{'` and `'.join(COMMANDS)}`.")
    runs = [(name, run) for name in ("random", "tiny") for run in _runs(Path(folder) / FILES[name])]
    return [_answers("random choice" if name == "random" else LABELS[run["image"]], run) for name, run in runs]


def _runs(path: Path) -> list[dict]:
    found = json.loads(path.read_text())
    return found.get("results", [found])


def _answers(label: str, run: dict) -> Answers:
    kinds = {part["letter"]: part["accuracy"] for part in run["per_task"].values()}
    return Answers(label, (run["accuracy"], *(kinds[k] for k in KINDS[1:])), tuple(run["interval"]), run["chance"])


def verdict(answers: list[Answers]) -> str:
    """One plain sentence on whether the model answers better than chance."""
    own = next(answer for answer in answers if answer.label == LABELS["own"])
    (low, high), chance = own.interval, own.chance
    better = "agrees" if low > chance else "disagrees" if high < chance else "cannot tell"
    return (
        f"Better than chance with its image: {own.values[0]:.3f} ({low:.3f} to {high:.3f}) against "
        f"{chance:.3f}, in the paper 0.390 against 0.220: {better}."
    )


def markdown(answers: list[Answers]) -> str:
    """Table 6 as Markdown."""
    rows = [(f"{a.label} (here)", a.values) for a in answers] + [(f"{name} (paper)", v) for name, v in PAPER.items()]
    lines = [table_row([label, *(f"{v:.3f}" for v in values)]) for label, values in rows]
    head = table_head(["", "all", "V", "H", "E"])
    return "\n".join(["**Table 6: questions about images**\n", *head, *lines, "", f"* {verdict(answers)}", f"* {NOTE}"])
