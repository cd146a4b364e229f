"""The states of images on the way from SAM's features to vision-language knowledge, and what linear probes read off them.

Letters: n examples, d numbers of a state, N image tokens, s patches of a token, C SAM width, D LLM width, h w feature grid.
Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from ullsam.data.captions import find_modality, find_structure
from ullsam.data.corpus import Corpus, Sample
from ullsam.data.io import Square, to_square
from ullsam.errors import InputError
from ullsam.evaluation.protocol import progress_bar, select_records
from ullsam.evaluation.statistics import bootstrap, estimate
from ullsam.model import ULLSAM
from ullsam.sbr import instance_ids
from ullsam.types import ImageFeatures
from ullsam.vlsa import pixel_shuffle

STEPS = ("features", "tokens", "hidden", "knowledge")  # encoder, projection, language model, VLSA
TOKENS = 64  # image tokens of a training image that the probe for objects learns from
PENALTIES = (1.0, 10.0, 100.0, 1000.0)  # of half the squared weights, against the sum of the examples' losses


@dataclass(frozen=True)
class ForwardTrace:
    """One image on its way through the model: what the probes read, and what the masks are made from."""

    corpus: int  # number of its corpus
    index: int  # its number in the corpus
    file: str
    sample: Sample
    square: Square
    states: dict[str, np.ndarray]  # of STEPS at the N tokens: float32 (N, s*C), (N, D), (N, D), (N, s*C)
    objects: np.ndarray  # (N, s) fraction of each patch that objects cover
    inside: np.ndarray  # (N,) bool, whether the token lies on the image and not on the padding
    features: ImageFeatures | None = None
    knowledge: Tensor | None = None  # (1, C, h, w)


def trace_corpus(
    model: ULLSAM, corpus: Corpus, number: int, split: str | None, seed: int, limit: int | None, progress: bool, keep: bool
) -> Iterator[ForwardTrace]:
    """The images of one corpus that have objects, see `trace_image`.

    Args:
        model, corpus, split, seed, limit, progress: as in `evaluate`.
        number: of the corpus among others.
        keep: whether features and knowledge are kept, which segmenting needs.
    """
    for index, record in progress_bar(select_records(corpus, split, seed, limit), corpus, progress):
        sample = corpus.read(record)
        if len(instance_ids(sample.labels)):
            trace = trace_image(model, sample, number, index, record.file)
            yield trace if keep else replace(trace, features=None, knowledge=None)


@torch.no_grad()
def trace_image(model: ULLSAM, sample: Sample, number: int = 0, index: int = 0, file: str = "") -> ForwardTrace:
    """Run one image up to its knowledge and keep the states on the way."""
    c, ratio = model.config.sam, model.config.shuffle_ratio
    pixels, (square,) = model.preprocess([sample.image])
    features = model.encode(pixels)
    tokens = model.image_tokens(features)
    found = model.states(features)
    hidden, knowledge = found.image, model.vlsa(found)

    def at_tokens(grid: Tensor) -> Tensor:  # (1, C, h, w) -> (1, N, s*C)
        return pixel_shuffle(grid.permute(0, 2, 3, 1), ratio).flatten(1, 2)

    def covered(mask: np.ndarray) -> np.ndarray:  # (H, W) -> (N, s), the fraction of each patch
        picture = (255 * mask).astype(np.uint8)[..., None].repeat(3, -1)
        canvas = to_square(picture, c.image_size, c.placement)[0][..., 0].astype(np.float32)
        patches = cv2.resize(canvas, (c.grid, c.grid), interpolation=cv2.INTER_AREA) / 255
        return at_tokens(torch.from_numpy(patches)[None, None])[0].numpy()

    steps = (at_tokens(features.embedding), tokens, hidden, at_tokens(knowledge))
    states = {name: x[0].float().cpu().numpy() for name, x in zip(STEPS, steps, strict=True)}
    inside = covered(np.ones(sample.labels.shape, bool)).mean(1) > 0.5
    objects = covered(sample.labels > 0)
    return ForwardTrace(number, index, file, sample, square, states, objects, inside, features, knowledge)


def sklearn(module: str):
    """A module of scikit-learn, which only the probes need.

    Raises:
        InputError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(f"sklearn.{module}")
    except ImportError as error:
        raise InputError("Probes need scikit-learn; install it with `pip install 'scikit-learn>=1.5,<2'`.") from error


def fit_probe(x: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None):
    """Logistic regression whose penalty is chosen on a quarter of the examples, then fitted to all of them.

    Args:
        x: float (n, d), standardised by the probe itself.
        y: int (n,), the class 0, 1, ... of each example.
        groups: int (n,), which examples belong together, such as the tokens of one image; None: each stands alone.
            Every fourth group is held out; with fewer than four groups the largest penalty is taken.

    Returns:
        A fitted pipeline of scikit-learn, with `predict` and `predict_proba`.
    """
    x, y = np.asarray(x), np.asarray(y)
    held = (np.arange(len(x)) if groups is None else np.asarray(groups)) % 4 == 3

    def fit(rows: np.ndarray, penalty: float):
        layer = sklearn("linear_model").LogisticRegression(C=1 / penalty, max_iter=1000)
        layer = layer if len(np.unique(y[rows])) > 1 else sklearn("dummy").DummyClassifier()  # one class needs no layer
        return sklearn("pipeline").make_pipeline(sklearn("preprocessing").StandardScaler(), layer).fit(x[rows], y[rows])

    def loss(penalty: float) -> float:
        found = class_probabilities(fit(~held, penalty), x[held], y.max() + 1)
        return -np.log(np.maximum(found[np.arange(held.sum()), y[held]], 1e-12)).mean()

    return fit(np.full(len(x), True), min(PENALTIES, key=loss) if held.any() else PENALTIES[-1])


def class_probabilities(probe, x: np.ndarray, count: int) -> np.ndarray:
    """Probability of each of `count` classes (n, count); 0 for those that the probe has not seen."""
    found = np.zeros((len(x), count))
    found[:, probe.classes_] = probe.predict_proba(x)
    return found


def ranking(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Fraction of pairs (one true, one false example) in which the true one scores higher, a tie counting half.

    The area under the ROC curve: 0.5 by chance, 1 at best. None without examples of both kinds.
    """
    scores, truth = np.ravel(scores), np.ravel(truth).astype(bool)
    return None if truth.all() or not truth.any() else float(sklearn("metrics").roc_auc_score(truth, scores))


def probe_states(
    fitted: Sequence[ForwardTrace], traces: Sequence[ForwardTrace], partners: Sequence[int], seed: int
) -> dict[str, dict]:
    """Read dataset, modality and structure off the mean state of an image, and objects off the state of each token.

    Returns:
        For each question: chance; steps {step: estimate}, the fraction of images that are named rightly or, for "objects",
        the `ranking` of an image's patches (mostly object or not); changes {step: estimate}, that much more than at the
        step before, image by image. For "objects" also control {step: estimate}: the states of another image. Questions
        with fewer than two answers among the images are left out.
    """
    questions = {
        "dataset": lambda x: str(x.corpus),
        "modality": lambda x: getattr(find_modality(x.sample.meta), "name", None),
        "structure": lambda x: getattr(find_structure(x.sample.meta), "many", None),
    }
    found = {}
    for name, answer in questions.items():
        learned, asked = ([(x, fact) for x in group if (fact := answer(x))] for group in (fitted, traces))
        if learned and asked and len({fact for _, fact in learned + asked}) > 1:
            found[name] = _probe_images(learned, asked, seed)
    return found | {"objects": _probe_tokens(fitted, traces, partners, seed)}


def _mean_state(trace: ForwardTrace, step: str) -> np.ndarray:
    """Mean over the image's tokens and the patches of a token: (C,) or (D,)."""
    mean = trace.states[step][trace.inside].mean(0)
    return mean.reshape(trace.objects.shape[1], -1).mean(0) if step in ("features", "knowledge") else mean


def _probe_images(learned: list[tuple], asked: list[tuple], seed: int) -> dict:
    """`probe_states` of one question; traces with their answers, to learn from and to be asked about."""
    classes, truth = sorted({answer for _, answer in learned}), [answer for _, answer in asked]
    y, right = np.array([classes.index(answer) for _, answer in learned]), {}
    for step in STEPS:
        x, unknown = (np.stack([_mean_state(trace, step) for trace, _ in pairs]) for pairs in (learned, asked))
        named = fit_probe(x, y).predict(unknown)
        right[step] = [classes[i] == answer for i, answer in zip(named, truth, strict=True)]
    chance = max(truth.count(c) for c in classes) / len(truth)
    return {"chance": chance, "classes": len(classes), **_along(right, seed)}


def _probe_tokens(
    fitted: Sequence[ForwardTrace], traces: Sequence[ForwardTrace], partners: Sequence[int], seed: int
) -> dict:
    """`probe_states` of where objects are: one probe for each of the s patches of a token."""
    rng = np.random.default_rng(seed)
    picks = [rng.permutation(np.flatnonzero(x.inside))[:TOKENS] for x in fitted]
    y = np.concatenate([x.objects[p] > 0.5 for x, p in zip(fitted, picks, strict=True)]).astype(int)  # (n, s)
    images = np.repeat(np.arange(len(picks)), [len(p) for p in picks])

    def rank(trace: ForwardTrace, scores: np.ndarray) -> float | None:
        return ranking(scores[trace.inside], trace.objects[trace.inside] > 0.5)

    right, control = {}, {}
    for step in STEPS:
        x = np.concatenate([trace.states[step][p] for trace, p in zip(fitted, picks, strict=True)])
        probes = [fit_probe(x, patch, images) for patch in y.T]
        scores = [np.stack([class_probabilities(p, t.states[step], 2)[:, 1] for p in probes], 1) for t in traces]
        right[step] = [rank(trace, s) for trace, s in zip(traces, scores, strict=True)]
        control[step] = estimate([rank(trace, scores[p]) for trace, p in zip(traces, partners, strict=True)], seed)
    return {"chance": 0.5, **_along(right, seed), "control": control}


def _along(right: dict[str, list], seed: int) -> dict:
    """Estimates of each step, and of its difference to the step before."""
    changes = {}
    for before, after in zip(STEPS, STEPS[1:], strict=False):
        pairs = zip(right[before], right[after], strict=True)
        changes[after] = estimate([None if v is None else float(v) - u for u, v in pairs], seed)
    return {"steps": {step: estimate(values, seed) for step, values in right.items()}, "changes": changes}


def variance_fractions(x: np.ndarray, seed: int = 0, draws: int = 2000) -> dict[str, dict]:
    """How much of some states is the same everywhere, and how much depends on the image, the place or both.

    The mean square of the states is split as in an analysis of variance with two factors.

    Args:
        x: float (I, P, d), the states at the same P places of I images.

    Returns:
        constant, image, place, both: {mean, interval} each, of a fraction; the four add up to 1. Intervals are from
        drawing images again.
    """
    x = np.asarray(x, np.float64)
    means, everything = x.mean(1), np.arange(len(x))  # (I, d), (I,)
    at_places = np.einsum("ipd,jpd->ij", x, x, optimize=True) / x.shape[1]  # products of images, place by place
    of_means = means @ means.T

    def fractions(images: np.ndarray, axis: int = -1) -> np.ndarray:  # (draws, I) numbers of images -> (4, draws)
        flat = images.astype(int) + len(x) * np.arange(len(images))[:, None]
        weights = np.bincount(flat.ravel(), minlength=flat.size).reshape(flat.shape) / len(x)
        total = weights @ np.diag(at_places)
        constant = ((weights @ of_means) * weights).sum(1)
        image = weights @ np.diag(of_means) - constant
        place = ((weights @ at_places) * weights).sum(1) - constant
        return np.stack([constant, image, place, total - constant - image - place]) / np.maximum(total, 1e-30)

    ends = bootstrap([everything], fractions, seed, draws=draws).T.tolist()  # (4, 2)
    measured = zip(("constant", "image", "place", "both"), fractions(everything[None])[:, 0].tolist(), ends, strict=True)
    return {name: {"mean": mean, "interval": interval} for name, mean, interval in measured}
