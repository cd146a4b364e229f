"""The lab log: one line per training run with its settings, cost and validation scores, so that nothing is tried twice."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

from ullsam.config import TrainConfig
from ullsam.errors import InputError


def log_run(run: str | Path, note: str, corpora: list, out: str | Path, limit: int | None = None) -> dict:
    """Scores a run's model on the corpora's validation splits (1P+3N, seed 0) and appends one line to the lab log.

    Args:
        run: folder of `fit` with a saved model.
        note: what was tried, and why.
        out: the lab log, JSON lines.
        limit: at most so many images per corpus.

    Returns:
        The line: run, note, model, steps, hours, the settings that differ from TrainConfig's, images, dice, sa, and
        dice_one_click (1P0N).

    Raises:
        InputError: the folder holds no run or no model.
    """
    from ullsam.evaluation.protocol import evaluate, mean_scores
    from ullsam.model import ULLSAM
    from ullsam.predictor import Predictor

    run, state = Path(run), _checkpoint(Path(run))
    predictor = Predictor(ULLSAM.from_pretrained(run))
    results, clicks = (
        [evaluate(predictor, corpus, "val", points, limit=limit) for corpus in corpora] for points in ((1, 3), (1, 0))
    )
    scores = mean_scores(results)
    line = {
        "run": run.name,
        "note": note,
        "model": predictor.model.config.name,
        "steps": state["step"],
        "hours": round(state["seconds"] / 3600, 3),
        "settings": _changed(state["config"]),
        "images": sum(r["n_images"] for r in results),
        "dice": round(scores["dice_instance"], 4),
        "sa": round(scores["sa50_instance"], 4),
        "dice_one_click": round(mean_scores(clicks)["dice_instance"], 4),
    }
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with Path(out).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return line


def _checkpoint(run: Path) -> dict:
    import torch

    path = run / "checkpoint.pt"
    if not path.is_file():
        raise InputError(f"There is no training run in {run} (no checkpoint.pt); pass a folder made by training.")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _changed(config: dict) -> dict:
    """The settings that are not the default ones."""
    usual = asdict(TrainConfig())
    return {f.name: config[f.name] for f in fields(TrainConfig) if f.name in config and config[f.name] != usual[f.name]}
