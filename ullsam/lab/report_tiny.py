"""What was measured of the tiny model beside its masks and words, as Markdown: its speed, and the paper's claims."""

from __future__ import annotations

from ullsam.lab.markdown import table_head, table_row
from ullsam.lab.reproduce_report import Verdict, verdicts
from ullsam.lab.reproduce_tables import TABLES, Table

SPEED = {
    "click_ms": "one click, any image size, ms",
    "ready_with_knowledge_s": "image ready, with knowledge, s",
    "resident_with_llm_mb": "memory with the language model, MB",
    "import_s": "import of ullsam, s",
}
OTHERS = {"segment_anything": "segment_anything's predictor", "transformers": "transformers' SamModel"}


def speed_table(result: dict) -> str:
    """Aims beside what was measured, and how long others take for the same work.

    Args:
        result: what bench_tiny wrote, see data/results/bench_tiny.json.
    """
    rows = table_head(["", "measured", "aim", "reached"])
    for name, aim in result["aims"].items():
        rows.append(table_row([SPEED[name], aim["measured"], f"< {aim['aim']}", "yes" if aim["reached"] else "no"]))
    c = result["conditions"]
    where = f"{c['threads']} thread, PyTorch {c['versions']['torch']}; {c['note']}"
    note = f"{_caption(result)}{_training(result)}{_others(result)}{where}. `{result['command']}`."
    return "\n".join(["**Speed of tiny on one core**:\n", *rows, f"\n{note}\n"])


def _caption(result: dict) -> str:
    seconds = [row["times"]["ullsam"]["median_s"] for row in result["work"] if row["work"] == "caption"]
    return f"A description takes {seconds[0]:.1f} s. " if seconds else ""


def _training(result: dict) -> str:
    if not (t := result["training"]):
        return ""
    return f"Training makes {t['steps_per_s']:.2g} steps per second ({t['images_per_step']} windows of {t['view_px']} px). "


def _others(result: dict) -> str:
    """Processor time of others for a plain SAM of the same size, as multiples of our predictor's for that same SAM."""
    parts = [
        f"{name} takes {_ratio(result, who, 'ready')} times as long as ours for an image and "
        f"{_ratio(result, who, 'point')} times for a click"
        for who, name in OTHERS.items()
    ]
    return f"For a plain SAM of this size, {', '.join(parts)}. "


def _ratio(result: dict, who: str, work: str) -> str:
    """Over the image sizes, for one object."""
    rows = [row["times"] for row in result["work"] if row["work"] == work and row["objects"] == 1]
    ratios = [row[who]["cpu_median_s"] / row["plain_ullsam"]["cpu_median_s"] for row in rows]
    return f"{min(ratios):.2g} to {max(ratios):.2g}"


def claims_table(measured: dict[str, dict]) -> str:
    """One row for each of the paper's claims, from the first of several results that measured it.

    Args:
        measured: budget -> what `python -m ullsam reproduce` wrote, the largest budget first.
    """
    rows = table_head(["", "claim", "Dice, paper", "Dice, here (95 % interval)", "", "budget, seeds"])
    for table in TABLES.values():
        found = {}
        for budget, results in measured.items():
            for v in verdicts(table, results):
                found.setdefault((v.better, v.worse), (v, f"{budget}, {_seeds(table, v, results)}"))
        rows += [_claim(table, *claim) for claim in found.values() if claim[0].asked == "paper"]
    used = " ".join(f"{name}: {_conditions(results)}." for name, results in measured.items())
    note = f"Each arm starts from uSAM-tiny. {used} Every number: {', '.join(_place(name) for name in measured)}."
    return "\n".join(["**The paper's tables and figures at tiny scale**:\n", *rows, f"\n{note}\n"])


def _seeds(table: Table, verdict: Verdict, results: dict) -> int:
    """How many seeds both of a claim's rows were measured with."""
    labels = (verdict.better, verdict.worse)
    return min(len(results["rows"][row.key]) for row in table.rows if row.label in labels)


def _claim(table: Table, v: Verdict, origin: str) -> str:
    return table_row(
        [
            table.title.split(":")[0],
            f"{v.better} > {v.worse}",
            "" if v.paper is None else f"{v.paper:+.3f}",
            f"{v.ours:+.3f} ({v.low:+.3f} to {v.high:+.3f})",
            v.word,
            origin,
        ]
    )


def _conditions(results: dict) -> str:
    b = results["conditions"]["budget"]
    images = f"{b['images'] or 'all'} images of each test set"
    return f"{b['steps']} steps of {b['batch_size']} images, {images}, `{results['command']}`"


def _place(budget: str) -> str:
    return f"[{budget}](data/results/reproduce_{budget}/tables.md)"
