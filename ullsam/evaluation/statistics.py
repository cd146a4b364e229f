"""How certain a mean is, one bootstrap for everything that is measured here, and tables of results as text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

_NUMBERS = 4_000_000  # drawn at a time, which bounds the memory


def bootstrap(
    samples: Sequence[np.ndarray], statistic: Callable, seed: int = 0, level: float = 0.95, draws: int = 2000
) -> np.ndarray:
    """Draw each sample again with replacement, many times, and keep the middle of what a statistic then gives.

    Args:
        samples: independent samples, each (..., n) with its n items along the last axis.
        statistic: called as statistic(*samples, axis=-1) with samples (..., draws, n); gives (..., draws).
        seed, draws: of the random draws, and how many.
        level: fraction of the draws that the interval holds.

    Returns:
        Low and high end, (2, ...).

    Source: the percentile method of `scipy.stats.bootstrap`.
    """
    from scipy import stats

    samples = [np.repeat(x, 2, axis=-1) if x.shape[-1] == 1 else x for x in samples]  # scipy refuses a single item
    batch = max(1, min(draws, _NUMBERS // max(sample.size for sample in samples)))
    options = {"n_resamples": draws, "batch": batch, "confidence_level": level, "method": "percentile"}
    found = stats.bootstrap(samples, statistic, vectorized=True, axis=-1, rng=np.random.default_rng(seed), **options)
    return np.stack(found.confidence_interval)


def bootstrap_interval(values: Sequence[float], seed: int = 0, level: float = 0.95, draws: int = 2000) -> list[float]:
    """Estimate how far a mean may be off, see `bootstrap`.

    Args:
        values: numbers or bool (n,), one per independent item.
        seed, level, draws: as in `bootstrap`.

    Returns:
        [low, high]; of a single value this value twice.
    """
    return [float(end) for end in bootstrap([np.asarray(values, float)], np.mean, seed, level, draws)]


def estimate(values: Iterable, seed: int = 0) -> dict:
    """Mean of one value per image with its 95 % bootstrap interval; images without a value (None) do not count.

    Returns:
        {mean, interval, n}; mean and interval None where no image has a value.
    """
    known = [float(value) for value in values if value is not None]
    interval = bootstrap_interval(known, seed) if known else None
    return {"mean": mean_of_known(known), "interval": interval, "n": len(known)}


def mean_of_known(values: Iterable) -> float | None:
    """Mean of the values that are not None; None if none is left."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def format_table(rows: Sequence[dict]) -> str:
    """Lay rows with the same keys out as plain text in columns.

    Floats get three decimals, None becomes "-", and texts stand on the left of their column; lists, such as those of single
    images, are left out.
    """
    columns = []
    for key in [key for key, value in rows[0].items() if not isinstance(value, list | dict)] if rows else ():
        values = [row[key] for row in rows]
        cells = ["-" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in values]
        width = max(map(len, [key, *cells]))
        side = "<" if all(isinstance(v, str | None) for v in values) else ">"
        columns.append([f"{cell:{side}{width}}" for cell in (key, *cells)])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def report(results: Sequence[dict], command: str, mean: Callable[[Sequence[dict]], dict] | None = None) -> dict:
    """What a results file holds: command, machine, and the one result, or all of them with what `mean` makes of them."""
    import torch

    machine = {"cores": os.cpu_count(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    head = {"command": command, "machine": machine}
    if len(results) == 1:
        return head | results[0]
    return head | {"results": list(results)} | ({"mean": mean(results)} if mean else {})
