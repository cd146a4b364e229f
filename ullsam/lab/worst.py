"""Where a model fails: of each dataset the image with the lowest Dice, and of it the object with the lowest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ullsam.data.corpus import Corpus
from ullsam.errors import InputError
from ullsam.evaluation.metrics import instance_scores
from ullsam.evaluation.protocol import make_prompts
from ullsam.evaluation.records import folder_name, select_records
from ullsam.lab.reproduce_grids import DPI, FONT, PANEL, Shown, draw_line
from ullsam.plots.charts import Picture
from ullsam.predictor import Predictor
from ullsam.sbr import instance_ids


def worst_cases(predictor: Predictor, corpora: Sequence[Corpus], measured: dict) -> Picture:
    """One line per dataset: the image, the truth with the points, and the mask.

    Args:
        predictor: of the model that was measured.
        corpora: folders of the datasets.
        measured: what `python -m ullsam evaluate` wrote about that model and these folders, with points.

    Raises:
        InputError: a folder was not measured.
    """
    results = {result["data"]: result for result in measured.get("results", [measured])}
    absent = [folder_name(corpus) for corpus in corpora if folder_name(corpus) not in results]
    if absent:
        raise InputError(f"The results do not tell of {', '.join(absent)}; evaluate the model on them first.")
    figure = Picture(figsize=(3 * PANEL + 0.5, len(corpora) * (PANEL + 0.2) + 0.5), dpi=DPI, layout="constrained")
    for corpus, panels in zip(corpora, figure.subplots(len(corpora), 3, squeeze=False), strict=True):
        draw_line(worst_case(predictor, corpus, results[folder_name(corpus)]), panels)
    figure.supxlabel("Number: Dice of the object (mean over the image's objects). Yellow: truth.", fontsize=FONT)
    return figure


def worst_case(predictor: Predictor, corpus: Corpus, result: dict) -> Shown:
    """The worst image with the points of its measurement, segmented again."""
    records = select_records(corpus, result["split"], result["seed"], None)
    file = min(result["per_image"], key=lambda row: row["dice_instance"])["file"]
    index, record = next((i, r) for i, r in records if r.file == file)
    sample = corpus.read(record)
    ids = instance_ids(sample.labels)
    rng = np.random.default_rng([result["seed"], index])  # as in `evaluate`
    prompts = make_prompts(sample.labels, ids, tuple(result["points"]), rng)
    predictor.set_image(sample.image)
    masks = predictor.predict(**prompts, use_vlk=result["vlk"]).masks
    dices = instance_scores(masks, sample.labels, ids)[0]
    return Shown(folder_name(corpus), sample, ids, prompts, (masks,), (dices,), int(np.argmin(dices)))
