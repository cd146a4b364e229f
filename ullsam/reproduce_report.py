"""What the reproduced tables say: means, intervals over images, and each claim of the paper beside our numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ullsam.reproduce import DOMAINS, TABLES, Row, Table

DRAWS = 2000  # bootstrap samples of images
METRICS = ("dice", "sa")


@dataclass(frozen=True)
class Verdict:
    """One claim of the paper ("better beats worse", in Dice) and what was measured here."""

    better: str
    worse: str
    paper: float | None  # difference in the paper
    ours: float  # difference here, mean over seeds and datasets
    low: float  # 95 % interval over images
    high: float

    @property
    def word(self) -> str:
        """Whether the sign here is that of the claim."""
        return "agrees" if self.low > 0 else "disagrees" if self.high < 0 else "cannot tell"

    @property
    def sentence(self) -> str:
        """The claim and the finding in plain words."""
        paper = "" if self.paper is None else f", in the paper {self.paper:+.3f}"
        found = f"{self.ours:+.3f} Dice here (95 % interval {self.low:+.3f} to {self.high:+.3f}){paper}"
        return f"{self.better} against {self.worse}: {found}: {self.word}."


def scores(row: Row, measured: dict) -> dict[str, np.ndarray]:
    """Dice and SA of each image of a row: {set: array (seeds, images, 2)}; {} where it was not measured."""
    seeds = [_by_set(row, rows) for _, rows in sorted(measured.get(row.key, {}).items())]
    return {name: np.stack([seed[name] for seed in seeds]) for name in seeds[0]} if seeds else {}


def _by_set(row: Row, rows: list[dict]) -> dict[str, np.ndarray]:
    found: dict[str, list] = {}
    for r in rows:
        if row.images not in DOMAINS or r["domain"] == row.images:
            found.setdefault(r["set"], []).append([r[m] for m in METRICS])
    return {name: np.array(values) for name, values in found.items()}


def mean_score(sets: dict[str, np.ndarray]) -> np.ndarray:
    """Dice and SA, (2,): means over seeds and images of each set, then over sets."""
    return np.mean([values.mean((0, 1)) for values in sets.values()], axis=0)


def spread(sets: dict[str, np.ndarray]) -> np.ndarray | None:
    """Sample standard deviation over seeds of the mean over sets, (2,); None for one seed."""
    per_seed = np.mean([values.mean(1) for values in sets.values()], axis=0)  # (seeds, 2)
    return per_seed.std(0, ddof=1) if len(per_seed) > 1 else None


def difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray], rng: np.random.Generator) -> tuple[float, float, float]:
    """Mean Dice of a minus that of b, and a 95 % bootstrap interval: images are drawn anew within each set, paired."""
    gaps = [(a[name] - b[name])[..., 0].mean(0) for name in a]  # per set: (images,), mean over seeds
    draws = [np.mean([rng.choice(gap, len(gap)).mean() for gap in gaps]) for _ in range(DRAWS)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(np.mean([gap.mean() for gap in gaps])), float(low), float(high)


def verdicts(table: Table, measured: dict, seed: int = 0) -> list[Verdict]:
    """Every claim of a table whose two rows were measured."""
    rows, found = {row.label: row for row in table.rows}, []
    for better, worse in table.claims:
        a, b = (scores(rows[label], measured) for label in (better, worse))
        if a and b:
            paper = [rows[label].paper for label in (better, worse)]
            stated = paper[0][0] - paper[1][0] if all(paper) else None
            found.append(Verdict(better, worse, stated, *difference(a, b, np.random.default_rng(seed))))
    return found


def markdown(measured: dict, names=tuple(TABLES)) -> str:
    """The tables of which a claim was measured, as Markdown; rows that were not measured are left out."""
    parts = [_one(TABLES[name], measured) for name in names]
    return "\n\n".join(part for part in parts if part)


def _one(table: Table, measured: dict) -> str:
    lines = [_line(row, scores(row, measured)) for row in table.rows if row.key in measured]
    claims = verdicts(table, measured)
    if not claims:
        return ""
    head = ["| | Dice | SA | paper: Dice | SA |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([f"**{table.title}**\n", *head, *lines, "", *(f"* {claim.sentence}" for claim in claims)])


def _line(row: Row, sets: dict[str, np.ndarray]) -> str:
    numbers, deviation = [f"{x:.3f}" for x in mean_score(sets)], spread(sets)
    if deviation is not None:
        numbers = [f"{x} ± {s:.3f}" for x, s in zip(numbers, deviation, strict=True)]
    paper = [f"{x:.3f}" for x in row.paper] if row.paper else ["", ""]
    return f"| {' | '.join([row.label, *numbers, *paper])} |"
