"""The command `lab`: experiments of the project itself, beside the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from ullsam.cli.options import one_of


def lab(
    experiment: Positional[Literal["words"]],
    budget: Literal["smoke", "short", "full", "wide"] = "smoke",
    model: str = "tiny",
    arms: tuple[str, ...] = (),
    out: str | None = None,
    results: str | None = None,
    data: str | None = None,
    synthetic: bool = False,
) -> None:
    """Do words reach the mask? One ambiguous click, and the same images for every way of telling SAM the words.

    Args:
        experiment: words: the control experiment
        budget: smoke: some minutes, the numbers mean nothing; short: one seed, an hour on two cores; full: three seeds;
            wide: all structures, a night
        model: tiny, or a folder of a saved model: what all arms start from
        arms: only these of the table, by their names
        out: folder of the trained arms, where a stopped run goes on; runs/words_BUDGET without it
        results: JSON file, and beside it a PNG; data/results/words_BUDGET.json without it
        data: folder of all datasets; ULLSAM_DATA without it
        synthetic: painted images instead of datasets
    """
    one_of(data=data, synthetic=synthetic)
    from ullsam.data.corpus import data_root
    from ullsam.errors import InputError
    from ullsam.evaluation.compare import shared_start
    from ullsam.evaluation.statistics import report
    from ullsam.files import write_json
    from ullsam.lab.figures import write_png
    from ullsam.lab.words import ARMS, BUDGETS, WordsExperiment, draw, table

    if unknown := [name for name in arms if name not in ARMS]:
        raise InputError(f"There is no arm {unknown[0]!r}; choose of {', '.join(ARMS)}.")
    target = Path(results or f"data/results/words_{budget}.json")
    root = None if synthetic else data_root(data)
    found = WordsExperiment(shared_start(model), BUDGETS[budget], out or f"runs/words_{budget}", root).run(arms or None)
    words = ["python -m ullsam lab", experiment, f"--budget {budget}", *(["--synthetic"] if synthetic else [])]
    write_json(target, report([found | {"model": Path(model).name}], " ".join(words)))
    write_png(draw(found), target.with_suffix(".png"))
    print(f"{table(found)}\n\nwritten to {target} and {target.with_suffix('.png')}")
