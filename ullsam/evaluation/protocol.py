"""Scores a model on a folder of images: prompted segmentation. Its descriptions are scored by words.py.

Protocol: every instance of an image is prompted once and gives one mask. Each mask is scored against its own
instance; then the masks are merged to a label map, which is matched with the true one as micro-sam does.
A dataset's number is the plain mean over its images. Processes of `accelerate launch` share the images.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ullsam.accel.distributed import gather_results, local_items
from ullsam.data.corpus import Corpus, Sample
from ullsam.errors import InputError
from ullsam.evaluation.caption_metrics import WORDS, evaluate_words, judge_words, mean_of_known, mean_words, summarise_words
from ullsam.evaluation.metrics import hit_rate, image_dice, instance_scores, label_map_scores, merge_instances
from ullsam.evaluation.records import folder_name, progress_bar, select_records
from ullsam.sbr import instance_ids, sample_box, sample_points

if TYPE_CHECKING:
    from ullsam.predictor import Predictor

__all__ = [
    "SCORES",
    "evaluate",
    "evaluate_words",
    "format_table",
    "judge_words",
    "make_prompts",
    "mean_of_known",
    "mean_scores",
    "report",
    "score_image",
    "score_masks",
    "select_records",
    "summarise",
    "summarise_words",
]

SCORES = ("dice_instance", "dice_image", "sa50_instance", "sa50_labelmap", "msa")
EDGES = np.array([-0.5, -0.5, 0.5, 0.5], np.float32)  # from the centres of a box's outermost pixels to their edges
_CHUNK = 32  # masks scored at a time, which bounds the memory


def evaluate(
    predictor: Predictor,
    corpus: Corpus,
    split: str | None = None,
    points: tuple[int, int] | str = (1, 3),
    use_vlk: bool = True,
    seed: int = 0,
    limit: int | None = None,
    progress: bool = False,
) -> dict:
    """Segment every instance of a corpus from simulated prompts and score the masks.

    Images without an instance are not scored; a logged warning says how many. The prompts of an image
    depend on `seed` and on its place in `corpus.records` alone, neither on the split nor on the limit.

    Args:
        predictor: runs the model; its image is replaced.
        corpus: images with instance masks.
        split: which records; None for all.
        points: numbers of positive and negative SBR points per instance, or "box" for its exact bounding box.
            An instance that fills the image gets its positive points only.
        use_vlk: with or without vision-language knowledge.
        seed: of the prompts.
        limit: score at most so many images, evenly spaced over the split; None for all.
        progress: show a bar on standard error.

    Returns:
        model, data (the folder's name), split, points, vlk (whether knowledge was used; False for a model without
        VLSA), seed; n_images and n_instances that were scored; the means over images of dice_instance, dice_image,
        sa50_instance, sa50_labelmap and msa, see `score_masks`; seconds, everything included; per_image: a list of
        {file, n_instances, the five scores, ms_image, ms_per_object}, see `score_image`.

    Raises:
        InputError: unusable points, seed or limit, an unknown split, an unreadable file, or no instance at all.
    """
    start = time.perf_counter()
    _check_points(points)
    chosen, rows = select_records(corpus, split, seed, limit), []
    for index, record in progress_bar(local_items(chosen), corpus, progress):
        rng = np.random.default_rng([seed, index])
        scores = score_image(predictor, corpus.read(record), rng, points, use_vlk)
        rows += [(index, {"file": record.file, **scores})] if scores else []
    per_image = gather_results(rows)
    if not per_image:
        raise InputError(f"No image of {corpus.folder} (split {split}) has an instance; check its masks.")
    _tell_empty(len(chosen) - len(per_image), corpus)
    return {
        "model": predictor.model.config.name,
        "data": folder_name(corpus),
        "split": split,
        "points": points if points == "box" else [int(n) for n in points],
        "vlk": use_vlk and predictor.model.vlsa is not None,
        "seed": seed,
        "n_images": len(per_image),
        "n_instances": sum(row["n_instances"] for row in per_image),
        **mean_scores(per_image),
        "seconds": round(time.perf_counter() - start, 3),
        "per_image": per_image,
    }


def score_image(
    predictor: Predictor,
    sample: Sample,
    rng: np.random.Generator,
    points: tuple[int, int] | str = (1, 3),
    use_vlk: bool = True,
) -> dict | None:
    """Prompt every instance of one image in one call and score the masks.

    Args:
        predictor, points, use_vlk: as in `evaluate`.
        sample: image with instance masks.
        rng: of the points.

    Returns:
        n_instances; the scores of `score_masks`; ms_image: milliseconds for features and knowledge of the image;
        ms_per_object: milliseconds from its prompt to its mask. None for an image without instances.
    """
    ids = instance_ids(sample.labels)
    if not len(ids):
        return None
    prompts = make_prompts(sample.labels, ids, points, rng)
    start = time.perf_counter()
    predictor.set_image(sample.image)
    if use_vlk and predictor.model.vlsa is not None:
        predictor.knowledge()  # kept by the predictor; computed here so that it counts as time of the image
    ready = time.perf_counter()
    masks = predictor.predict(**prompts, use_vlk=use_vlk).masks
    done = time.perf_counter()
    times = {"ms_image": 1e3 * (ready - start), "ms_per_object": 1e3 * (done - ready) / len(ids)}
    return {"n_instances": len(ids), **score_masks(masks, sample.labels, ids), **times}


def make_prompts(
    labels: np.ndarray, ids: np.ndarray, points: tuple[int, int] | str, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Simulate one prompt per instance.

    Args:
        labels: int (H, W); ids: (I,) instances that occur in it.
        points: numbers of positive and negative points, or "box".
        rng: of the points.

    Returns:
        What `Predictor.predict` takes: points float32 (I, P, 2) as x, y in pixels and labels int64 (I, P), or box
        float32 (I, 4) as x0, y0, x1, y1, the outer edges of the outermost pixels.
    """
    if points == "box":
        return {"box": np.stack([sample_box(labels, int(i), rng) for i in ids]) + EDGES}
    n_pos, n_neg = points
    n_neg = 0 if (labels == ids[0]).all() else n_neg  # nothing lies outside an instance that fills the image
    sampled = [sample_points(labels, int(i), rng, n_pos, n_neg) for i in ids]
    return {"points": np.stack([s.points for s in sampled]), "labels": np.stack([s.labels for s in sampled])}


def score_masks(masks: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> dict[str, float]:
    """Score one mask per instance of an image.

    Args:
        masks: bool (I, H, W); labels: int (H, W), the true label map; ids: (I,) the instance of each mask.

    Returns:
        dice_instance: mean Dice of each mask and its own instance.
        sa50_instance: share r of instances whose mask has an IoU of at least 0.5. Where all masks are disjoint
            connected pieces, SA of the label map is TP / (TP + FP + FN) = r / (2 - r), because each miss counts
            twice, as a false positive and as a false negative.
        dice_image: Dice of the union of all masks and all instances.
        sa50_labelmap, msa: SA at an IoU of 0.5, and its mean over 0.5, 0.55, .. 0.95, of `merge_instances(masks)`
            against the true label map, whose connected pieces (8 neighbours) count as instances of their own, as in
            micro-sam where it reads the truth from a file. An instance in several pieces has one prompt all the same.
    """
    from skimage.measure import label

    parts = [slice(i, i + _CHUNK) for i in range(0, len(ids), _CHUNK)]
    dices, ious = np.concatenate([instance_scores(masks[p], labels, ids[p]) for p in parts], axis=1)  # (2, I)
    merged = merge_instances(masks)
    matched = label_map_scores(merged, label(labels))
    return {
        "dice_instance": float(dices.mean()),
        "dice_image": float(image_dice(merged, labels)),
        "sa50_instance": hit_rate(ious),
        "sa50_labelmap": float(matched["sa50"]),
        "msa": float(matched["msa"]),
    }


def mean_scores(rows: Sequence[dict]) -> dict[str, float]:
    """Plain means of the five SCORES over images or datasets."""
    return {name: float(np.mean([row[name] for row in rows])) for name in SCORES}


def summarise(results: Sequence[dict]) -> list[dict]:
    """Turn results of `evaluate` into rows for `format_table`, with a last row "mean" where there are several.

    Times are medians over images, because the first image of a run pays for warming up.
    """
    rows = [_summary(result) for result in results]
    if len(rows) > 1:
        counts = {key: sum(row[key] for row in rows) for key in ("images", "instances")}
        rows.append({key: None for key in rows[0]} | {"data": "mean"} | counts | mean_scores(rows))
    return rows


def format_table(rows: Sequence[dict]) -> str:
    """Lay rows with the same keys out as plain text in columns.

    Floats get three decimals, None becomes "-", and texts stand on the left of their column.
    """
    if not rows:
        return ""
    cells = [list(rows[0])] + [[_cell(row[key]) for key in rows[0]] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    left = [all(isinstance(row[key], str | None) for row in rows) for key in rows[0]]
    formats = [f"{'<' if text else '>'}{width}" for text, width in zip(left, widths, strict=True)]
    lines = [[format(cell, form) for cell, form in zip(line, formats, strict=True)] for line in cells]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def report(results: Sequence[dict], command: str) -> dict:
    """What a results file holds: command, machine, and the one result, or all of them with the mean of their scores."""
    import torch

    machine = {"cores": os.cpu_count(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    head = {"command": command, "machine": machine}
    if len(results) == 1:
        return head | results[0]
    means = {SCORES: mean_scores, WORDS: mean_words}
    mean = [of(results) for names, of in means.items() if all(name in row for row in results for name in names)]
    return head | {"results": list(results)} | ({"mean": mean[0]} if mean else {})


def _check_points(points: tuple[int, int] | str) -> None:
    if points == "box":
        return
    if not (isinstance(points, tuple | list) and len(points) == 2 and points[0] >= 1 and points[1] >= 0):
        raise InputError(f"points is {points!r}; give (positive, negative) with at least 1 and 0, or 'box'.")


def _tell_empty(count: int, corpus: Corpus) -> None:
    if count:
        logging.getLogger(__name__).warning("%s: %d images without an instance are not scored", folder_name(corpus), count)


def _summary(result: dict) -> dict:
    points, images = result["points"], result["per_image"]
    return {
        "model": result["model"],
        "data": result["data"],
        "split": result["split"],
        "points": points if isinstance(points, str) else "+".join(map(str, points)),
        "vlk": "yes" if result["vlk"] else "no",
        "images": result["n_images"],
        "instances": result["n_instances"],
        **{name: result[name] for name in SCORES},
        "ms_image": float(np.median([row["ms_image"] for row in images])),
        "ms_per_object": float(np.median([row["ms_per_object"] for row in images])),
    }


def _cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
