"""Scores the descriptions that a model writes: what they name rightly, what they make up, and whether they differ.

The claims about each image are compared with the facts of its dataset and with its instance masks. How much of what is right
is read off the image shows in two further conditions: the description of an image of another dataset ("shuffled"), and
one that is written without any image ("text-only").
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ullsam.accel.distributed import gather_results, local_items
from ullsam.data import captions
from ullsam.data.corpus import Corpus, Record, Sample
from ullsam.errors import InputError
from ullsam.evaluation.protocol import Kept, folder_name, progress_bar, select_records
from ullsam.evaluation.statistics import mean_of_known
from ullsam.model import ULLSAM
from ullsam.sbr import instance_ids

CAPTION_METRICS = tuple(
    "modality structure count count_chance count_stated distinct_share hallucinated contradicted".split()
)


def evaluate_captions(
    model: ULLSAM,
    corpus: Corpus,
    split: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    other: Corpus | None = None,
    max_new_tokens: int = 96,
    progress: bool = False,
    use_image: bool = True,
    keep: str | Path | None = None,
) -> dict:
    """Describe images and compare what is said with the facts of the corpus.

    Args:
        model: with a language model.
        corpus, split, limit, progress, keep: as in `evaluate`; images without an instance count here.
        seed: chooses images of `other`.
        other: None describes each image itself (condition "image"). Another corpus describes a random image of that
            one instead (condition "shuffled") and judges the text by the facts of `corpus`: what is right then is
            not read off the image.
        max_new_tokens: upper limit of a description's length.
        use_image: False writes without any image (condition "text-only"), see `describe_nothing`: what is right then
            is what the model says anyway.

    Returns:
        model, data, split, condition, seed, n_images; the CAPTION_METRICS of `mean_captions`; distinct: number of
        different descriptions; seconds; per_image: a list of {file, text, and what `judge_caption` returns}.

    Raises:
        InputError: no language model, `other` together with `use_image=False`, or as `evaluate`.
    """
    if other is not None and not use_image:
        raise InputError("A description without an image cannot be of another folder's image; choose one of the two.")
    start = time.perf_counter()
    model.llm_or_raise()
    nothing = None if use_image else describe_nothing(model, max_new_tokens)

    def judged(index: int, record: Record) -> dict:
        sample, text = corpus.read(record), nothing
        if use_image:
            instead = other and other.read(other.records[np.random.default_rng([seed, index]).integers(len(other.records))])
            text = model.describe((instead or sample).image, max_new_tokens=max_new_tokens)
        return {"file": record.file, "text": text, **judge_caption(text, sample)}

    about = {"other": other and str(other.folder.resolve()), "tokens": max_new_tokens, "image": use_image, "seed": seed}
    kept, chosen = Kept(keep, model, **about), select_records(corpus, split, seed, limit)
    items = progress_bar(local_items(chosen), corpus, progress)
    rows = gather_results([(index, kept.row(index, record, partial(judged, index, record))) for index, record in items])
    true, different = [row["true_count"] for row in rows], len({row["text"] for row in rows})
    return {
        "model": model.config.name,
        "data": folder_name(corpus),
        "split": split,
        "condition": "shuffled" if other is not None else "image" if use_image else "text-only",
        "seed": seed,
        "n_images": len(rows),
        **{key: mean_of_known(row[key] for row in rows) for key in ("modality", "structure", "count")},
        "count_chance": max(map(true.count, true)) / len(true),
        "count_stated": mean_of_known(row["count"] is not None for row in rows),
        "distinct_share": different / len(rows),
        "hallucinated": mean_of_known(bool(row["contradictions"]) for row in rows),
        "contradicted": mean_of_known(len(row["contradictions"]) for row in rows),
        "distinct": different,
        "seconds": round(time.perf_counter() - start, 3),
        "per_image": rows,
    }


def describe_nothing(model: ULLSAM, max_new_tokens: int = 96) -> str:
    """What the model writes when asked to describe an image that is not there.

    The text around the image is the usual one, with no image token in its place: the same as the condition "none" of
    `microvqa.run`. The answer is the same for all images. No training step has this input, so the model may fall back
    on what its language model says of any picture.
    """
    import torch

    llm = model.llm_or_raise()
    return llm.generate(torch.zeros(1, 0, llm.dim, device=model.device), max_new_tokens=max_new_tokens)[0]


def judge_caption(text: str, sample: Sample) -> dict:
    """Compare one description with the facts of its image.

    Returns:
        modality, structure: whether it names the right one, None where meta lacks the fact; count: whether the number
        of objects that it states, in words or digits, is of the true band (`captions.count_band`), None where it
        states none; true_count: that band; contradictions: the claims that are false, see `captions.contradictions`.
    """
    meta, claims = sample.meta, captions.check_claims(text, sample)
    return {
        "modality": captions.names_modality(text, meta) if captions.find_modality(meta) else None,
        "structure": captions.names_structure(text, meta) if captions.find_structure(meta) else None,
        "count": claims["count"],
        "true_count": captions.count_band(len(instance_ids(sample.labels))),
        "contradictions": [key for key, right in claims.items() if right is False],
    }


def mean_captions(results: Sequence[dict]) -> dict[str, float | None]:
    """Plain means of the CAPTION_METRICS over datasets, each over those that have it.

    modality, structure: fraction of descriptions that name the right one; count: fraction with the right number of
    objects (band of `captions.count_band`) among those that state a number; count_chance: fraction that would have it
    right if all stated the most frequent one of the dataset; count_stated: fraction that states one; distinct_share:
    different descriptions per image; hallucinated: fraction of descriptions with at least one claim that the truth
    contradicts (of modality, structure, count, place and contrast), and contradicted: number of such claims in one.
    """
    return {name: mean_of_known(row[name] for row in results) for name in CAPTION_METRICS}


def summarise_captions(results: Sequence[dict]) -> list[dict]:
    """Turn results of `evaluate_captions` into rows for `format_table`, with a last row "mean" where there are several."""
    left_out = ("seed", "seconds", "per_image", "distinct")
    rows = [{key: value for key, value in result.items() if key not in left_out} for result in results]
    if len(rows) > 1:
        total = sum(row["n_images"] for row in rows)
        rows.append({key: None for key in rows[0]} | {"data": "mean", "n_images": total} | mean_captions(rows))
    return rows
