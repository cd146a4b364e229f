"""Measured results as Markdown tables: the replication's, and what the benchmarks aim at and reach."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ullsam.lab.arms import QUESTION_TYPES, QUESTIONS, QUESTIONS_NOTE, TABLES
from ullsam.lab.verdicts import Answers, Sets, better_than_chance, scores, summary, verdicts

TINY_AIMS = {
    "click_ms": "one click, any image size, ms",
    "ready_with_knowledge_s": "image ready, with knowledge, s",
    "resident_with_llm_mb": "memory with the language model, MB",
    "import_s": "import of ullsam, s",
}
SETUP = (
    "Dice is the mean over objects; SA is the fraction of objects whose mask has an IoU of at least 0.5 with the truth. The "
    "paper's SA is taken from label maps and is lower for the same masks (0.794 for 0.885 of the objects). In brackets: "
    "95 % intervals over images, not over seeds; a difference below 0.005 Dice counts as cannot tell, whatever its interval."
)


def reproduced_tables(results: dict, names: Sequence[str], answers: Sequence[Answers] = ()) -> str:
    """The tables of which a claim was measured, as Markdown; rows that were not measured are left out.

    Args:
        results: of `Reproduction.run`; names: of TABLES; answers: of `read_answers`, for table6.
    """
    parts, titles = [], ["", "Dice", "SA", "paper: Dice", "SA"]
    for table in (TABLES[name] for name in names):
        if claims := verdicts(table, results):
            rows = [(row, scores(row, results)) for row in table.rows]
            rows = [
                [row.label, *_means(sets), *map(three_decimals, row.paper or (None, None))] for row, sets in rows if sets
            ]
            found = [(v, with_interval(v.ours, v.low, v.high, "+")) for v in claims]
            notes = [f"{v.better} against {v.worse}: {gap} Dice here, {v.finding}." for v, gap in found]
            parts.append(_titled(table.title, titles, rows, [summary(claims), *notes, table.note]))
    parts += [SETUP] if parts else []
    if "table6" in names and answers:
        found = {f"{a.label} (here)": a.values for a in answers} | {f"{k} (paper)": v for k, v in QUESTIONS.items()}
        rows = [[label, *map(three_decimals, values)] for label, values in found.items()]
        notes = [better_than_chance(answers), QUESTIONS_NOTE]
        parts.append(_titled(TABLES["table6"].title, ["", *QUESTION_TYPES], rows, notes))
    return "\n\n".join(parts)


def _titled(title: str, titles: list[str], rows: list[list], notes: list[str]) -> str:
    return "\n".join([f"**{title}**\n", markdown_table(titles, rows), "", *(f"* {note}" for note in notes if note)])


def _means(sets: Sets) -> list[str]:
    """Mean Dice and SA, with the sample standard deviation over seeds where there are several."""
    per_seed = np.mean([values.mean(1) for values in sets.values()], axis=0)  # (seeds, 2)
    if len(per_seed) == 1:
        return [f"{x:.3f}" for x in per_seed[0]]
    return [f"{x:.3f} ± {s:.3f}" for x, s in zip(per_seed.mean(0), per_seed.std(0, ddof=1), strict=True)]


def aims_table(result: dict) -> str:
    """What was aimed at and what was reached, of a file that bench_tiny or bench_paper wrote."""
    rows = []
    for name, x in result["aims"].items():
        value, aim = x["measured"], x.get("aim", "")
        measured = "not measured" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
        reached = {True: "yes", False: "no"}.get(x.get("reached"), "")
        rows.append([TINY_AIMS.get(name, name), measured, aim if isinstance(aim, str) else f"< {aim}", reached])
    return markdown_table(["", "measured", "aim", "reached"], rows)


def phases_table(result: dict) -> str:
    """All phases of all parts of bench_paper: where the time goes, and how far each is from what the machine can do."""
    rows = []
    for name, part in result["parts"].items():
        for phase, x in part.get("phases", {}).items():
            flops, rate = f"{x['gflops'] / 1000:.2f}", f"{x['share_of_gemm']:.0%}"
            rows.append([name, phase, f"{x['seconds']:.3g}", flops, rate, part["peak_gb"]])
    return markdown_table(["part", "phase", "seconds", "TFLOP", "share of the machine's rate", "peak GB"], rows)


def markdown_table(titles: Sequence, rows: Iterable[Sequence]) -> str:
    """Rows under titles, as Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def three_decimals(value: float | None) -> str:
    """0.123, or nothing for None."""
    return "" if value is None else f"{value:.3f}"


def with_interval(value: float, low: float, high: float, sign: str = "") -> str:
    """0.123 (0.100 to 0.150)."""
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"
