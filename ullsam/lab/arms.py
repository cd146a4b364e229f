"""The paper's tables and figures: which trainings they need, what is measured and claimed; the numbers are in arms.json.

Every arm is a stage 3 that starts from the same trained SAM (the shipped uSAM-tiny), as the paper's start from uSAM.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

DOMAINS = ("LM", "EM")  # light and electron microscopy, what is trained on
GRIDS = ("fig4", "fig7")  # pictures, not numbers
QUESTION_TYPES = ("all", "V", "H", "E")  # of Table 6: V perception, H hypotheses, E proposals of experiments


@dataclass(frozen=True)
class Arm:
    """One training: what differs from the paper's full method."""

    vlsa: str = "paper"  # variant; "none" is uSAM's interactive branch
    options: dict = field(default_factory=dict)  # of the variant
    stages: tuple[int, ...] | None = None  # caption stages from a fresh projection; None takes the shipped model's
    prompts: tuple[int, int] = (1, 3)  # positive and negative points in training
    domain: str | None = None  # only images of this domain, "LM" or "EM"


@dataclass(frozen=True)
class Row:
    """One line of a table: an arm, how it is asked, on which images, and what the paper measured there."""

    label: str
    arm: str
    points: tuple[int, int] = (1, 3)
    vlk: bool = True
    images: str = "in-domain"  # "in-domain", "out-of-domain", or the domain "LM" or "EM" of the in-domain sets
    paper: tuple[float, float] | None = None  # Dice and SA, where the paper gives numbers

    @property
    def role(self) -> str:
        """Which test sets are measured: "in-domain" or "out-of-domain"."""
        return "out-of-domain" if self.images == "out-of-domain" else "in-domain"

    @property
    def key(self) -> str:
        """What identifies its measurement; rows of several tables may have the same."""
        knowledge = "with VLK" if self.vlk else "without VLK"
        return f"{self.arm} | {self.points[0]}P+{self.points[1]}N | {knowledge} | {self.role}"


@dataclass(frozen=True)
class Claim:
    """One row of a table is better than another, in Dice."""

    better: str  # label of its row
    worse: str
    paper: float | None = None  # difference that the paper's text gives where its rows have no numbers
    asked: str = "paper"  # "paper" claims it; "us" where the paper does not compare the two


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper, and what it claims."""

    title: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    note: str = ""  # what a reader must know about the paper's numbers


def _tuples(values: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _table(title: str, rows: list[dict], claims: list[dict] = (), note: str = "") -> Table:
    return Table(title, tuple(Row(**_tuples(row)) for row in rows), tuple(Claim(**claim) for claim in claims), note)


_DATA = json.loads(Path(__file__).with_name("arms.json").read_text(encoding="utf-8"))
ARMS = {name: Arm(**_tuples(arm)) for name, arm in _DATA["arms"].items()}
# the most telling first: that is the order in which `Reproduction.run` measures
TABLES = {name: _table(**table) for name, table in _DATA["tables"].items()}
_, USAM, OURS = (row.paper for row in TABLES["table3"].rows)  # Dice and SA of the paper's models
QUESTIONS = _tuples(_DATA["questions"])  # Table 6, `python -m ullsam microvqa`: fractions of right answers
QUESTIONS_NOTE = _DATA["questions_note"]
