"""The measured part of the model card: the runs behind the weights, what they cost, and what the weights reach."""

from __future__ import annotations

from pathlib import Path

from ullsam.lab.markdown import table_head, table_row
from ullsam.lab.report import ARMS, SETS, read_result
from ullsam.tiny.recipes import RECIPES, Recipe


def card(results: str | Path) -> str:
    """Tables of the runs (from training_log.json) and of the mean scores, as Markdown; what is absent is left out."""
    folder = Path(results)
    logs = read_result(folder / "training_log.json") or {}
    return "\n".join(part for part in (_runs(logs), _means(folder)) if part)


def _runs(logs: dict[str, list[dict]]) -> str:
    """One row per run, in the order of the recipes; hours as logged, the first and last tenth's loss."""
    titles = ["run", "from", "stage", "view", "batch", "steps", "hours", "loss at first", "loss at last"]
    lines = table_head(titles)
    known = [(name, recipe, logs[name]) for name, recipe in RECIPES.items() if name in logs]
    lines += [table_row([name, *_run(recipe, log)]) for name, recipe, log in known]
    hours = sum(log[-1]["seconds"] for *_, log in known) / 3600
    total = f"\nTogether {hours:.1f} hours on two cores, some of them shared with other work.\n"
    return "\n".join([*lines, total]) if known else ""


def _run(recipe: Recipe, log: list[dict]) -> list:
    tenth = max(1, len(log) // 10)
    first, last = (sum(entry["loss"] for entry in part) / tenth for part in (log[:tenth], log[-tenth:]))
    config, view = recipe.train, recipe.train.view or recipe.model.sam.image_size
    hours = f"{log[-1]['seconds'] / 3600:.2f}"
    return [
        recipe.start or "nothing",
        config.stage,
        f"{view} px",
        config.batch_size,
        log[-1]["step"],
        hours,
        f"{first:.2f}",
        f"{last:.2f}",
    ]


def _means(folder: Path) -> str:
    titles = ["mean of the datasets", "Dice", "SA(0.5) per object", "Dice per image", "mSA of the label map"]
    lines = table_head(titles)
    keys = ("dice_instance", "sa50_instance", "dice_image", "msa")
    for suffix, title in SETS.items():
        found = {arm: read_result(folder / f"{prefix}_{suffix}.json") for prefix, arm in ARMS.items()}
        lines += [
            table_row([f"{arm}: {title.lower()}", *(f"{result['mean'][key]:.3f}" for key in keys)])
            for arm, result in found.items()
            if result
        ]
    return "\n".join([*lines, ""]) if len(lines) > 2 else ""
