"""Scores a model on a folder of images: prompted segmentation. Its descriptions are scored in `caption_metrics`.

Protocol: every instance of an image is prompted once and gives one mask. Each mask is scored against its own
instance; then the masks are merged to a label map, which is matched with the true one as micro-sam does.
A dataset's number is the plain mean over its images. Processes of `accelerate launch` share the images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ullsam.accel.distributed import distributed_state, gather_results, local_items
from ullsam.data.corpus import Corpus, Record, Sample, spaced
from ullsam.data.io import append_line, read_lines
from ullsam.errors import InputError
from ullsam.evaluation.metrics import Merging, dice, hit_rate, instance_scores, label_map_scores
from ullsam.predictor import Predictor
from ullsam.sbr import instance_ids, sample_box, sample_points
from ullsam.train import fingerprint

SCORES = ("dice_instance", "dice_image", "sa50_instance", "sa50_labelmap", "msa")
EDGES = np.array([-0.5, -0.5, 0.5, 0.5], np.float32)  # from the centres of a box's outermost pixels to their edges
Points = tuple[int, int] | str  # how many positive and negative SBR points an object gets, or "box"
_CHUNK = 16  # masks made and scored at a time, which bounds the memory; a multiple of the predictor's own number


def evaluate(
    predictor: Predictor,
    corpus: Corpus,
    split: str | None = None,
    points: Points = (1, 3),
    use_vlk: bool = True,
    seed: int = 0,
    limit: int | None = None,
    progress: bool = False,
    keep: str | Path | None = None,
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
        keep: file for the scores of each image as they are made, from which an interrupted run goes on; None for none.

    Returns:
        model, data (the folder's name), split, points, vlk (whether knowledge was used; False for a model without
        VLSA), seed; n_images and n_instances that were scored; the means over images of dice_instance, dice_image,
        sa50_instance, sa50_labelmap and msa, see `score_masks`; seconds, everything included; per_image: a list of
        {file, n_instances, the five scores, ms_image, ms_per_object}, see `score_image`.

    Raises:
        InputError: unusable points, seed or limit, an unknown split, an unreadable file, or no instance at all.
    """
    start = time.perf_counter()
    if points != "box" and not (isinstance(points, tuple | list) and len(points) == 2 and points[0] >= 1 and points[1] >= 0):
        raise InputError(f"points is {points!r}; give (positive, negative) with at least 1 and 0, or 'box'.")
    chosen, rows = select_records(corpus, split, seed, limit), []
    kept = Kept(keep, predictor.model, points=points, vlk=use_vlk, seed=seed)
    for index, record in progress_bar(local_items(chosen), corpus, progress):
        make = partial(_score_record, predictor, corpus, record, [seed, index], points, use_vlk)
        rows += [(index, {"file": record.file, **scores})] if (scores := kept.row(index, record, make)) else []
    per_image = gather_results(rows)
    if not per_image:
        raise InputError(f"No image of {corpus.folder} (split {split}) has an instance; check its masks.")
    if empty := len(chosen) - len(per_image):
        text = "%s: %d images without an instance are not scored"
        logging.getLogger(__name__).warning(text, folder_name(corpus), empty)
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


def _score_record(predictor: Predictor, corpus: Corpus, record: Record, seed: list[int], *how) -> dict | None:
    return score_image(predictor, corpus.read(record), np.random.default_rng(seed), *how)


class Kept:
    """What a measurement has found of each image so far, so that one that was interrupted goes on.

    Args:
        path: a jsonl file, to which each process adds its number; None keeps nothing.
        model: what is measured; about: what else all rows depend on.
    """

    def __init__(self, path: str | Path | None, model, **about):
        self.path, self.rows = path and Path(f"{path}.{distributed_state().process_index}"), {}
        if path:
            about = json.dumps([fingerprint(model.state_dict()), about], sort_keys=True)
            self.about = hashlib.sha256(about.encode()).hexdigest()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.rows = {row["of"]: row["found"] for row in read_lines(self.path, mend=True)}

    def row(self, index: int, record: Record, make: Callable[[], dict | None]) -> dict | None:
        """What was found of a record, or what `make` finds now."""
        if not self.path:
            return make()
        files = [(str(file.resolve()), file.stat().st_mtime_ns) for file in (record.image_path, record.mask_path)]
        of = f"{self.about} {index} {files}"
        if of not in self.rows:
            self.rows[of] = make()
            with self.path.open("a", encoding="utf-8") as lines:
                append_line(lines, {"of": of, "found": self.rows[of]})
        return self.rows[of]


def score_image(
    predictor: Predictor, sample: Sample, rng: np.random.Generator, points: Points = (1, 3), use_vlk: bool = True
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
    prompts, spent = make_prompts(sample.labels, ids, points, rng), []

    def segmented() -> Iterator[np.ndarray]:
        for i in range(0, len(ids), _CHUNK):
            begun = time.perf_counter()
            masks = predictor.predict(**{k: x[i : i + _CHUNK] for k, x in prompts.items()}, use_vlk=use_vlk).masks
            spent.append(time.perf_counter() - begun)
            yield masks

    start = time.perf_counter()
    predictor.set_image(sample.image)
    if use_vlk and predictor.model.vlsa is not None:
        predictor.knowledge()  # kept by the predictor; computed here so that it counts as time of the image
    ready = time.perf_counter()
    scores = score_masks(segmented(), sample.labels, ids)
    return {
        "n_instances": len(ids),
        **scores,
        "ms_image": 1e3 * (ready - start),
        "ms_per_object": 1e3 * sum(spent) / len(ids),
    }


def make_prompts(labels: np.ndarray, ids: np.ndarray, points: Points, rng: np.random.Generator) -> dict[str, np.ndarray]:
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


def score_masks(masks: np.ndarray | Iterable[np.ndarray], labels: np.ndarray, ids: np.ndarray) -> dict[str, float]:
    """Score one mask per instance of an image.

    Args:
        masks: bool (I, H, W), or parts of them in order, which need not be in memory together.
        labels: int (H, W), the true label map; ids: (I,) the instance of each mask.

    Returns:
        dice_instance: mean Dice of each mask and its own instance.
        sa50_instance: fraction r of instances whose mask has an IoU of at least 0.5. Where all masks are disjoint
            connected pieces, SA of the label map is TP / (TP + FP + FN) = r / (2 - r), because each miss counts
            twice, as a false positive and as a false negative.
        dice_image: Dice of the union of all masks and all instances.
        sa50_labelmap, msa: SA at an IoU of 0.5, and its mean over 0.5, 0.55, .. 0.95, of `merge_instances(masks)`
            against the true label map, whose connected pieces (8 neighbours) count as instances of their own, as in
            micro-sam where it reads the truth from a file. An instance in several pieces has one prompt all the same.
    """
    from skimage.measure import label

    parts = (masks[i : i + _CHUNK] for i in range(0, len(ids), _CHUNK)) if isinstance(masks, np.ndarray) else masks
    merging, found = Merging(labels.shape), []
    for part in parts:
        found.append(instance_scores(part, labels, ids[merging.count : merging.count + len(part)]))
        merging.add(part)
    dices, ious = np.concatenate(found, axis=1)  # (2, I)
    merged = merging.pieces()
    matched = label_map_scores(merged, label(labels))
    return {
        "dice_instance": float(dices.mean()),
        "dice_image": dice(merged != 0, labels != 0),
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
    rows = []
    for result in results:
        points = result["points"]
        row = {key: result[key] for key in ("model", "data", "split")}
        row |= {"points": points if isinstance(points, str) else "+".join(map(str, points))}
        row |= {"vlk": "yes" if result["vlk"] else "no", "images": result["n_images"], "instances": result["n_instances"]}
        row |= {name: result[name] for name in SCORES}
        times = ("ms_image", "ms_per_object")
        rows.append(row | {time: float(np.median([image[time] for image in result["per_image"]])) for time in times})
    if len(rows) > 1:
        counts = {key: sum(row[key] for row in rows) for key in ("images", "instances")}
        rows.append({key: None for key in rows[0]} | {"data": "mean"} | counts | mean_scores(rows))
    return rows


def select_records(corpus: Corpus, split: str | None, seed: int, limit: int | None) -> list[tuple[int, Record]]:
    """Records of the split with their places in the corpus; `limit` of them, evenly spaced.

    Raises:
        InputError: an unknown split, a negative seed, or a limit below 1.
    """
    if seed < 0 or (limit is not None and limit < 1):
        raise InputError(f"seed is {seed} and limit {limit}; give a seed of 0 or more and a limit of 1 or more.")
    wanted = set(corpus.select(split))
    return spaced([(index, record) for index, record in enumerate(corpus.records) if record in wanted], limit)


def progress_bar(chosen: list, corpus: Corpus, progress: bool):
    """The items themselves; while they are gone through, a bar on standard error if `progress`."""
    from tqdm import tqdm

    return tqdm(chosen, desc=folder_name(corpus), unit="image", disable=not progress)


def folder_name(corpus: Corpus) -> str:
    """The folder's own name, without where it lies."""
    return corpus.folder.resolve().name
