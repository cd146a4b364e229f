"""The lab log: one line per training run with its settings, cost and validation scores, so that nothing is tried twice."""

from __future__ import annotations

import json
from dataclasses import asdict
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
    import torch

    from ullsam.evaluation.protocol import evaluate, mean_scores
    from ullsam.model import ULLSAM
    from ullsam.predictor import Predictor

    run = Path(run)
    if not (run / "checkpoint.pt").is_file():
        raise InputError(f"There is no training run in {run} (no checkpoint.pt); pass a folder made by training.")
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True, mmap=True)
    config, usual = state["config"], asdict(TrainConfig())
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
        "settings": {name: config[name] for name in usual if name in config and config[name] != usual[name]},
        "images": sum(r["n_images"] for r in results),
        "dice": round(scores["dice_instance"], 4),
        "sa": round(scores["sa50_instance"], 4),
        "dice_one_click": round(mean_scores(clicks)["dice_instance"], 4),
    }
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with Path(out).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return line
