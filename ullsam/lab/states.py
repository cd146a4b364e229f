"""The states of images on the way from SAM's features to vision-language knowledge, and what can be read off them.

Letters: N image tokens, s patches of a token, C SAM width, D LLM width, h w feature grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from ullsam.data.corpus import Corpus, Sample
from ullsam.data.io import Square, to_square
from ullsam.data.phrases import find_modality, find_structure
from ullsam.evaluation.records import progress_bar, select_records
from ullsam.lab.probes import estimate, fit_probe, ranking, variance_shares
from ullsam.model import ULLSAM
from ullsam.sam import ImageFeatures
from ullsam.sbr import instance_ids
from ullsam.vlsa import pixel_shuffle

STEPS = ("features", "tokens", "hidden", "knowledge")  # encoder, projection, language model, VLSA
PLACES = 64  # image tokens of a training image that the probe for objects learns from


@dataclass(frozen=True)
class Seen:
    """One image on its way through the model: what the probes read, and what the masks are made from."""

    data: int  # place of its corpus
    index: int  # place in its corpus
    file: str
    sample: Sample
    square: Square
    rows: dict[str, Tensor]  # states of STEPS at the N tokens: (N, s*C), (N, D), (N, D), (N, s*C)
    objects: Tensor  # (N, s) share of each patch that objects cover
    inside: Tensor  # (N,) bool, whether the token lies on the image and not on the padding
    features: ImageFeatures | None = None
    knowledge: Tensor | None = None  # (1, C, h, w)


def look_at(
    model: ULLSAM, corpus: Corpus, data: int, split: str | None, seed: int, limit: int | None, progress: bool, keep: bool
) -> Iterator[Seen]:
    """The images of one corpus that have objects, see `look`.

    Args:
        model, corpus, split, seed, limit, progress: as in `evaluate`.
        data: place of the corpus among others.
        keep: whether features and knowledge are kept, which segmenting needs.
    """
    for index, record in progress_bar(select_records(corpus, split, seed, limit), corpus, progress):
        sample = corpus.read(record)
        if len(instance_ids(sample.labels)):
            seen = look(model, sample, data, index, record.file)
            yield seen if keep else replace(seen, features=None, knowledge=None)


def look(model: ULLSAM, sample: Sample, data: int = 0, index: int = 0, file: str = "") -> Seen:
    """Run one image up to its knowledge and keep the states on the way."""
    ratio, parts = model.config.shuffle_ratio, round(1 / model.config.shuffle_ratio)
    pixels, (square,) = model.preprocess([sample.image])
    features = model.encode(pixels)
    tokens = model.image_tokens(features)
    hidden = model.llm.hidden(tokens)
    knowledge = model.vlsa(hidden)
    maps = {"features": features.embedding, "knowledge": knowledge}
    flat = {k: pixel_shuffle(x.permute(0, 2, 3, 1), ratio).flatten(1, 2) for k, x in maps.items()}  # (1, N, s*C)
    rows = {k: x[0].float().cpu() for k, x in {**flat, "tokens": tokens, "hidden": hidden}.items()}
    covered, whole = (_on_grid(mask, model, parts) for mask in (sample.labels > 0, np.ones_like(sample.labels)))
    rows, inside = {k: rows[k] for k in STEPS}, whole.mean(1) > 0.5
    return Seen(data, index, file, sample, square, rows, covered, inside, features, knowledge)


def _on_grid(mask: np.ndarray, model: ULLSAM, parts: int) -> Tensor:
    """Share of each patch that a mask (H, W) covers, in the tokens' order: (N, s)."""
    c = model.config.sam
    picture = (255 * (mask > 0)).astype(np.uint8)[..., None].repeat(3, -1)
    square = to_square(picture, c.image_size, c.placement)[0][..., 0]
    grid = cv2.resize(square.astype(np.float32), (c.grid, c.grid), interpolation=cv2.INTER_AREA) / 255  # (h, w)
    return pixel_shuffle(torch.from_numpy(grid)[None, ..., None], 1 / parts).flatten(1, 2)[0]


# ---------------------------------------------------------------- what can be read off the states


def probe(fitted: Sequence[Seen], seen: Sequence[Seen], partners: Sequence[int], seed: int) -> dict:
    """Read dataset, modality and structure off the mean state of an image, and objects off the state of each token.

    Returns:
        For each question: chance; steps {step: estimate}, the share of images that are named rightly or, for "objects",
        the `ranking` of an image's patches (mostly object or not); changes {step: estimate}, that much more than at the
        step before, image by image. For "objects" also control {step: estimate}: the states of another image. Questions
        with fewer than two answers among the images are left out.
    """
    found = {}
    for name, answer in {"dataset": _dataset, "modality": _modality, "structure": _structure}.items():
        if len({answer(x) for x in (*fitted, *seen)} - {None}) > 1:
            found[name] = _probe_images(fitted, seen, answer, seed)
    return found | {"objects": _probe_places(fitted, seen, partners, seed)}


def _dataset(x: Seen) -> str:
    return str(x.data)


def _modality(x: Seen) -> str | None:
    row = find_modality(x.sample.meta)
    return row and row.name


def _structure(x: Seen) -> str | None:
    row = find_structure(x.sample.meta)
    return row and row.many


def _mean_state(x: Seen, step: str) -> Tensor:
    """Mean over the places of the image: (C,) or (D,)."""
    mean = x.rows[step][x.inside].mean(0)
    return mean.unflatten(0, (x.objects.shape[1], -1)).mean(0) if step in ("features", "knowledge") else mean


def _probe_images(fitted: Sequence[Seen], seen: Sequence[Seen], answer, seed: int) -> dict:
    fitted, seen = ([x for x in group if answer(x) is not None] for group in (fitted, seen))
    classes = sorted({answer(x) for x in fitted})
    y = torch.tensor([classes.index(answer(x)) for x in fitted])
    truth = [answer(x) for x in seen]
    right = {}
    for step in STEPS:
        layer = fit_probe(torch.stack([_mean_state(x, step) for x in fitted]), y)
        named = layer(torch.stack([_mean_state(x, step) for x in seen])).argmax(1).tolist()
        right[step] = [classes[i] == t for i, t in zip(named, truth, strict=True)]
    chance = max(truth.count(c) for c in classes) / len(truth)
    return {"chance": chance, "classes": len(classes), **_along(right, seed)}


def _probe_places(fitted: Sequence[Seen], seen: Sequence[Seen], partners: Sequence[int], seed: int) -> dict:
    rng = np.random.default_rng(seed)
    picks = [torch.from_numpy(rng.permutation(x.inside.nonzero()[:, 0].numpy())[:PLACES]) for x in fitted]
    y = torch.cat([(x.objects[p] > 0.5).float() for x, p in zip(fitted, picks, strict=True)])
    images = torch.repeat_interleave(torch.arange(len(picks)), torch.tensor([len(p) for p in picks]))
    right, control = {}, {}
    for step in STEPS:
        layer = fit_probe(torch.cat([x.rows[step][p] for x, p in zip(fitted, picks, strict=True)]), y, images)
        scores = [layer(x.rows[step]).numpy() for x in seen]
        right[step] = [_rank(x, s) for x, s in zip(seen, scores, strict=True)]
        control[step] = estimate([_rank(x, scores[p]) for x, p in zip(seen, partners, strict=True)], seed)
    return {"chance": 0.5, **_along(right, seed), "control": control}


def _rank(x: Seen, scores: np.ndarray) -> float | None:
    inside = x.inside.numpy()
    return ranking(scores[inside], x.objects.numpy()[inside] > 0.5)


def _along(right: dict[str, list], seed: int) -> dict:
    """Estimates of each step, and of its difference to the step before."""
    pairs = zip(list(STEPS), list(STEPS)[1:], strict=False)
    changes = {b: [None if v is None else float(v) - u for u, v in zip(right[a], right[b], strict=True)] for a, b in pairs}
    return {
        "steps": {k: estimate(v, seed) for k, v in right.items()},
        "changes": {k: estimate(v, seed) for k, v in changes.items()},
    }


def shares(seen: Sequence[Seen], seed: int) -> dict[str, dict]:
    """`variance_shares` of the states of each step, at the places that lie inside all images: {step: {share: estimate}}."""
    inside = torch.stack([x.inside for x in seen]).all(0)
    return {step: variance_shares(torch.stack([x.rows[step][inside] for x in seen]).numpy(), seed) for step in STEPS}
