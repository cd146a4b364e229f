"""What the reproduced tables say: means, intervals over images, and each claim of the paper beside our numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ullsam.lab.markdown import table_head, table_row
from ullsam.lab.reproduce_tables import DOMAINS, ONE, SBR, TABLES, Row, Table

DRAWS = 2000  # bootstrap samples of images
SMALL = 0.005  # Dice; the intervals are over images and do not hold what another seed changes
METRICS = ("dice", "sa")
WORDS = ("agrees", "disagrees", "cannot tell")
SETUP = (
    "Dice is the mean over objects; SA is the share of objects whose mask has an IoU of at least 0.5 with the truth. The "
    "paper's SA is taken from label maps and is lower for the same masks (0.794 for 0.885 of the objects). Intervals are "
    "over images, not over seeds; a difference below 0.005 Dice counts as cannot tell, whatever its interval."
)
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
        if abs(self.ours) < SMALL:
            return "cannot tell"
        return "agrees" if self.low > 0 else "disagrees" if self.high < 0 else "cannot tell"

    @property
    def sentence(self) -> str:
        """The claim and the finding in plain words."""
        found = f"{self.ours:+.3f} Dice here (95 % interval {self.low:+.3f} to {self.high:+.3f})"
        return f"{self.better} against {self.worse}: {found}, {self.paper_words}: {self.outcome}."

    @property
    def paper_words(self) -> str:
        """What the paper gives, or that it gives nothing."""
        if self.asked == "us":
            return "not compared in the paper"
        return "no number in the paper" if self.paper is None else f"in the paper {self.paper:+.3f}"

    @property
    def outcome(self) -> str:
        """The word; for what only we ask, the finding itself."""
        if self.asked == "paper":
            return self.word
        return {"agrees": "better", "disagrees": "worse"}.get(self.word, self.word)


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


def spread(sets: Sets) -> np.ndarray | None:
    """Sample standard deviation over seeds of the mean over sets, (2,); None for one seed."""
    per_seed = np.mean([values.mean(1) for values in sets.values()], axis=0)  # (seeds, 2)
    return per_seed.std(0, ddof=1) if len(per_seed) > 1 else None


def bootstrap(sets: Sets, seed: int = 0) -> np.ndarray:
    """Means over sets when images are drawn anew within each set, (DRAWS, 2)."""
    rng, per_set = np.random.default_rng(seed), [values.mean(0) for values in sets.values()]  # (images, 2) each
    draws = [values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(1) for values in per_set]
    return np.mean(draws, axis=0)


def interval(sets: Sets) -> np.ndarray:
    """95 % bootstrap interval of `mean_score`, (2 ends, 2): low and high of Dice and SA."""
    return np.percentile(bootstrap(sets), [2.5, 97.5], axis=0)


def difference(a: Sets, b: Sets, seed: int = 0) -> tuple[float, float, float]:
    """Mean Dice of a minus that of b, and its 95 % bootstrap interval; images are paired."""
    gaps = {name: (a[name].mean(0) - b[name].mean(0))[None] for name in a}  # (1, images, 2), mean over seeds
    low, high = np.percentile(bootstrap(gaps, seed)[:, 0], [2.5, 97.5])
    return float(mean_score(gaps)[0]), float(low), float(high)


def verdicts(table: Table, results: dict, seed: int = 0) -> list[Verdict]:
    """Every claim of a table whose two rows were measured."""
    rows, found = {row.label: row for row in table.rows}, []
    for claim in table.claims:
        a, b = (scores(rows[label], results) for label in claim.labels)
        if a and b:
            paper = [rows[label].paper for label in claim.labels]
            stated = paper[0][0] - paper[1][0] if all(paper) else claim.paper
            found.append(Verdict(*claim.labels, stated, *difference(a, b, seed), claim.asked))
    return found


def summary(table: Table, results: dict) -> str:
    """One plain sentence: how many of the paper's claims these measurements agree with; "" where there are none."""
    found = [v.word for v in verdicts(table, results) if v.asked == "paper"]
    if len(found) < 2:
        return "".join(
            {"cannot tell": "Cannot tell whether the paper's claim holds here."}.get(
                word, f"{word.capitalize()} with the paper's claim."
            )
            for word in found
        )
    counts = ", ".join(f"{word} for {found.count(word)}" for word in WORDS if word in found)
    return f"The paper's {len(found)} claims, measured here: {counts}."


def origin(results: dict) -> str:
    """Where the distance between uLLSAM and a uSAM trained with one point comes from; "" where it was not measured."""
    rows = {row.label: scores(row, results) for row in TABLES["table3"].rows}
    if not all(rows.values()):
        return ""
    whole, points, knowledge = (difference(rows[a], rows[b]) for a, b in (("uLLSAM", ONE), (SBR, ONE), ("uLLSAM", SBR)))
    parts = [f"{gap:+.3f} ({low:+.3f} to {high:+.3f})" for gap, low, high in (whole, points, knowledge)]
    return (
        f"uLLSAM is {parts[0]} Dice from uSAM trained with 1 point: {parts[1]} comes with SBR's points in "
        f"training alone, {parts[2]} with language model and knowledge on top of them."
    )


def markdown(results: dict, names=tuple(TABLES)) -> str:
    """The tables of which a claim was measured, as Markdown; rows that were not measured are left out."""
    parts = [part for name in names if (part := _one(name, results))]
    return "\n\n".join([*parts, SETUP] if parts else [])


def _one(name: str, results: dict) -> str:
    table = TABLES[name]
    lines = [_line(row, scores(row, results)) for row in table.rows if row.key in results["rows"]]
    claims = verdicts(table, results)
    if not claims:
        return ""
    head = table_head(["", "Dice", "SA", "paper: Dice", "SA"])
    said = [summary(table, results), *(verdict.sentence for verdict in claims)]
    said += [origin(results)] if name == "table3" else []
    return "\n".join([f"**{table.title}**\n", *head, *lines, "", *(f"* {text}" for text in [*said, table.note] if text)])


def _line(row: Row, sets: Sets) -> str:
    numbers, deviation = [f"{x:.3f}" for x in mean_score(sets)], spread(sets)
    if deviation is not None:
        numbers = [f"{x} ± {s:.3f}" for x, s in zip(numbers, deviation, strict=True)]
    paper = [f"{x:.3f}" for x in row.paper] if row.paper else ["", ""]
    return table_row([row.label, *numbers, *paper])
