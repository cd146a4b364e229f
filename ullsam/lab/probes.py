"""Linear probes: what a single linear layer can read off a model's inner states, and with which certainty.

Letters: n examples, d numbers of a state, k classes or outputs.
Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

PENALTIES = (1.0, 10.0, 100.0, 1000.0)  # of half the squared weights, against the sum of the examples' losses


@dataclass(frozen=True)
class Probe:
    """A linear layer on standardised states: weight (d, k), bias (k,), and mean and spread (d,) of the examples."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    spread: Tensor

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits (n, k) of states (n, d)."""
        return (x - self.mean) / self.spread @ self.weight + self.bias


def fit_probe(x: Tensor, y: Tensor, groups: Tensor | None = None) -> Probe:
    """Logistic regression whose penalty is chosen on a quarter of the examples, then fitted to all of them.

    Args:
        x: float (n, d).
        y: int64 (n,), the class of each example; or float (n, k), yes or no for each of k questions.
        groups: int64 (n,), which examples belong together, such as the places of one image; None: each stands alone.
            Every fourth group is held out; with fewer than four groups the largest penalty is taken.
    """
    x = x.detach().float()
    mean, spread = x.mean(0), x.std(0).clamp_min(1e-6)
    x = (x - mean) / spread
    groups = torch.arange(len(x)) if groups is None else groups
    outputs = int(y.max()) + 1 if y.dim() == 1 else y.shape[1]
    held, penalty = groups % 4 == 3, PENALTIES[-1]
    if held.any():
        trials = [_fit(x[~held], y[~held], outputs, p) for p in PENALTIES]
        losses = [float(_loss(x[held] @ weight + bias, y[held])) for weight, bias in trials]
        penalty = PENALTIES[int(np.argmin(losses))]
    return Probe(*_fit(x, y, outputs, penalty), mean, spread)


def _fit(x: Tensor, y: Tensor, outputs: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight (d, k) and bias (k,) by L-BFGS, a method that needs no learning rate."""
    with torch.enable_grad():
        weight = torch.zeros(x.shape[1], outputs, requires_grad=True)
        bias = torch.zeros(outputs, requires_grad=True)
        search = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            search.zero_grad()
            value = _loss(x @ weight + bias, y) + penalty * weight.square().sum() / (2 * len(x))
            value.backward()
            return value

        search.step(closure)
    return weight.detach(), bias.detach()


def _loss(logits: Tensor, y: Tensor) -> Tensor:
    if y.dim() == 1:
        return F.cross_entropy(logits, y)
    return F.binary_cross_entropy_with_logits(logits, y, reduction="sum") / len(y)


def ranking(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Share of pairs (one true, one false example) in which the true one scores higher, a tie counting half.

    The area under the ROC curve: 0.5 by chance, 1 at best. None without examples of both kinds.
    """
    scores, truth = np.asarray(scores, float).ravel(), np.asarray(truth, bool).ravel()
    high, low = scores[truth], np.sort(scores[~truth])
    if not len(high) or not len(low):
        return None
    below, not_above = (np.searchsorted(low, high, side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(low)))


def estimate(values, seed: int = 0) -> dict:
    """Mean of one value per image with its 95 % bootstrap interval; images without a value (None) do not count.

    Returns:
        {mean, interval, n}; mean and interval None where no image has a value.
    """
    from ullsam.lab.microvqa import bootstrap_interval

    known = np.array([float(v) for v in values if v is not None])
    if not len(known):
        return {"mean": None, "interval": None, "n": 0}
    return {"mean": float(known.mean()), "interval": bootstrap_interval(known, seed), "n": len(known)}


def variance_shares(x: np.ndarray, seed: int = 0, draws: int = 2000) -> dict[str, dict]:
    """How much of some states is the same everywhere, and how much depends on the image, the place or both.

    The mean square of the states is split as in an analysis of variance with two factors.

    Args:
        x: float (I, P, d), the states at the same P places of I images.

    Returns:
        constant, image, place, both: {mean, interval} each, of a share; the four add up to 1. Intervals are from
        drawing images again.
    """
    x = np.asarray(x, np.float64)
    means = x.mean(1)  # (I, d)
    together = np.einsum("ipd,jpd->ij", x, x, optimize=True) / x.shape[1]  # products of images, place by place
    apart = means @ means.T
    rng = np.random.default_rng(seed)
    picks = np.stack([np.bincount(rng.integers(len(x), size=len(x)), minlength=len(x)) for _ in range(draws)]) / len(x)
    whole = _shares(np.full((1, len(x)), 1 / len(x)), together, apart)
    drawn = _shares(picks, together, apart)
    return {
        key: {"mean": float(whole[key][0]), "interval": [float(v) for v in np.quantile(drawn[key], (0.025, 0.975))]}
        for key in whole
    }


def _shares(weights: np.ndarray, together: np.ndarray, apart: np.ndarray) -> dict[str, np.ndarray]:
    """The four shares for each row of `weights` (draws, I), which say how much each image counts."""
    total = weights @ np.diag(together)
    constant = np.einsum("wi,ij,wj->w", weights, apart, weights, optimize=True)
    image = weights @ np.diag(apart) - constant
    place = np.einsum("wi,ij,wj->w", weights, together, weights, optimize=True) - constant
    parts = {"constant": constant, "image": image, "place": place, "both": total - constant - image - place}
    return {key: part / np.maximum(total, 1e-30) for key, part in parts.items()}
