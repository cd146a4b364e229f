"""The states of images on the way from SAM's features to vision-language knowledge, and what linear probes read off them.

Letters: n examples, d numbers of a state, N image tokens, s patches of a token, K vectors of knowledge, C SAM width, D LLM
width, h w feature grid.
Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

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
    states: dict[str, np.ndarray]  # of STEPS at the N tokens: float32 (N, s*C), (N, D), (N, D), (N, s*C) or (K, d)
    objects: np.ndarray  # (N, s) fraction of each patch that objects cover
    inside: np.ndarray  # (N,) bool, whether the token lies on the image and not on the padding
    grids: tuple[str, ...] = STEPS  # the steps that have a state for each image token
    features: ImageFeatures | None = None
    knowledge: Tensor | None = None  # (1, C, h, w), (1, K, d) or (1, d)

    def on_image(self, step: str) -> np.ndarray:
        """The states of a step without those on the padding; knowledge that is no grid is returned as it is."""
        return self.states[step][self.inside] if step in self.grids else self.states[step]


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

    grids = STEPS if knowledge.shape[2:] == features.embedding.shape[2:] else STEPS[:-1]
    vectors = knowledge.flatten(2).mT if knowledge.ndim == 4 else knowledge.reshape(1, -1, knowledge.shape[-1])  # (1, K, d)
    vectors = at_tokens(knowledge) if grids == STEPS else vectors
    steps = (at_tokens(features.embedding), tokens, hidden, vectors)
    states = {name: x[0].float().cpu().numpy() for name, x in zip(STEPS, steps, strict=True)}
    inside = covered(np.ones(sample.labels.shape, bool)).mean(1) > 0.5
    objects = covered(sample.labels > 0)
    return ForwardTrace(number, index, file, sample, square, states, objects, inside, grids, features, knowledge)


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
    """Mean over the image's tokens and the patches of a token: (C,), (D,) or (d,)."""
    mean = trace.on_image(step).mean(0)
    patches = step == "features" or (step == "knowledge" and step in trace.grids)
    return mean.reshape(trace.objects.shape[1], -1).mean(0) if patches else mean


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
    """`probe_states` of where objects are: one probe for each of the s patches of a token, at steps that have positions."""
    rng = np.random.default_rng(seed)
    picks = [rng.permutation(np.flatnonzero(x.inside))[:TOKENS] for x in fitted]
    y = np.concatenate([x.objects[p] > 0.5 for x, p in zip(fitted, picks, strict=True)]).astype(int)  # (n, s)
    images = np.repeat(np.arange(len(picks)), [len(p) for p in picks])

    def rank(trace: ForwardTrace, scores: np.ndarray) -> float | None:
        return ranking(scores[trace.inside], trace.objects[trace.inside] > 0.5)

    right, control = {}, {}
    for step in traces[0].grids:
        x = np.concatenate([trace.states[step][p] for trace, p in zip(fitted, picks, strict=True)])
        probes = [fit_probe(x, patch, images) for patch in y.T]
        scores = [np.stack([class_probabilities(p, t.states[step], 2)[:, 1] for p in probes], 1) for t in traces]
        right[step] = [rank(trace, s) for trace, s in zip(traces, scores, strict=True)]
        control[step] = estimate([rank(trace, scores[p]) for trace, p in zip(traces, partners, strict=True)], seed)
    return {"chance": 0.5, **_along(right, seed), "control": control}


def _along(right: dict[str, list], seed: int) -> dict:
    """Estimates of each step, and of its difference to the step before."""
    changes = {}
    for before, after in pairwise(right):
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


@torch.no_grad()
def power_fractions(
    model: ULLSAM, images: Sequence[Sequence[np.ndarray]], words: Sequence[str], layers: Sequence[int] | None = None
) -> list[dict]:
    """How much of the language model's states depends on the position, the image and the words.

    Args:
        model: with a language model and a VLSA.
        images: as many images (H, W[, C]) of each of several sets.
        words: phrases, each about every image: before it for the states at image tokens, after it for those at the words.
        layers: numbers of layers, 1 for the first; None for four, evenly spaced up to the last.

    Returns:
        Rows for `format_table`: states, "image tokens" or "last word" (of a phrase); layer, 0 for the tokens that come in,
        "VLSA" for the last layer's states as the VLSA gets them, centred where the model does so, with words where it reads
        them; and fractions of their mean square that add up to 1: constant; position; set; image, among those of a set;
        words; rest, what depends on several of these together.
    """
    depth = model.llm_or_raise().lm.config.num_hidden_layers
    layers = tuple(layers or sorted({max(1, round(depth * i / 4)) for i in (1, 2, 3, 4)}))
    read, valid = zip(*(_read_phrases(model, image, words, layers) for row in images for image in row), strict=True)
    inside, rows = torch.stack(valid).all(0), []
    for name, layer in read[0]:
        x = torch.stack([states[name, layer] for states in read]).double()  # (images, words, positions, d)
        x = x[:, :, inside] if name == "image tokens" else x
        fractions = split_power(x.unflatten(0, (len(images), -1)).cpu().numpy())
        rows.append({"states": name, "layer": layer, **fractions})
    return rows


def _read_phrases(model: ULLSAM, image: np.ndarray, words: Sequence[str], layers: tuple[int, ...]) -> tuple[dict, Tensor]:
    """States (words, positions, D) by name and layer, see `power_fractions`, and which tokens (N,) lie on the image."""
    pixels, (square,) = model.preprocess([image])
    grid, ratio = (model.config.sam.grid,) * 2, model.config.shuffle_ratio
    inside = cv2.resize(square.valid_mask().astype(np.float32), grid, interpolation=cv2.INTER_AREA)
    inside = pixel_shuffle(torch.from_numpy(inside)[None, ..., None], ratio).mean(-1).flatten() > 0.5
    features = model.encode(pixels)
    tokens, memory = model.image_tokens(features), model.remember(features)
    at_image, at_words = {0: [tokens] * len(words)}, {}
    for text in words:
        before, after = (model.llm.read(tokens, [text], reads, layers) for reads in ("before", "after"))
        given = model.states(features, text, memory)
        for layer in (*layers, "VLSA"):
            at_image.setdefault(layer, []).append((given if layer == "VLSA" else before.layers[layer]).image)
            at_words.setdefault(layer, []).append((given if layer == "VLSA" else after.layers[layer]).last[:, None])
    found = {("image tokens", layer): torch.cat(x) for layer, x in at_image.items()}
    return found | {("last word", layer): torch.cat(x) for layer, x in at_words.items()}, inside


def split_power(x: np.ndarray) -> dict[str, float]:
    """Split the mean square of states (sets, images of a set, words, positions, d) by what they depend on.

    Returns:
        constant, position, set, image, words, rest: fractions that add up to 1, as in an analysis of variance.
    """

    def mean(*axes: int) -> np.ndarray:
        return x.mean(axes, keepdims=True)

    everything, of_set = mean(0, 1, 2, 3), mean(1, 2, 3)
    parts = {
        "constant": everything,
        "position": mean(0, 1, 2) - everything,
        "set": of_set - everything,
        "image": mean(2, 3) - of_set,
        "words": mean(0, 1, 3) - everything,
    }
    total = max(float((x**2).sum(-1).mean()), 1e-30)
    fractions = {name: float((part**2).sum(-1).mean()) / total for name, part in parts.items()}
    return fractions | {"rest": 1 - sum(fractions.values())}
