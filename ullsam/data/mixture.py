"""Balanced, deterministic draws from several datasets and from synthetic microscopy."""

from collections import OrderedDict
from collections.abc import Sequence

import cv2
import numpy as np

from ullsam.data.corpus import Corpus, Record, Sample
from ullsam.data.io import renumbered
from ullsam.errors import InputError


class Mixture:
    """Endless balanced draws from real datasets and synthetic styles.

    A draw is synthetic with probability `synthetic_share`, every style being equally likely; else it is one
    of the datasets, all equally likely, and one of its images. Images are read when drawn and kept in memory;
    ids above 65535 are renumbered.

    Args:
        sources: (corpus, split) pairs.
        synthetic: styles of `ullsam.data.synthetic`.
        synthetic_share: 0 to 1; 1 where there are no sources.
        seed: used by `sample` where it gets none.
        cache_mb: memory for decoded images, in megabytes; the least recently drawn leave first.
        synthetic_size: side of a synthetic image, in pixels.

    Raises:
        InputError: nothing to draw from, an unknown split, or a share outside 0 to 1.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Corpus, str | None]],
        synthetic: Sequence[str] | None = None,
        synthetic_share: float = 0.0,
        seed: int = 0,
        cache_mb: float = 400.0,
        synthetic_size: int = 256,
    ):
        self.sources = [(corpus, corpus.select(split)) for corpus, split in sources]
        self.synthetic = list(synthetic or [])
        self.synthetic_share, self.synthetic_size, self.seed = synthetic_share, synthetic_size, seed
        self._cache = _Cache(cache_mb * 1e6)
        self._check()

    def _check(self) -> None:
        if not 0 <= self.synthetic_share <= 1:
            raise InputError(f"synthetic_share is {self.synthetic_share}; use a share from 0 to 1.")
        if self.synthetic_share > 0 and not self.synthetic:
            raise InputError("synthetic_share is above 0 but no styles are given; name some or use share 0.")
        if self.synthetic_share < 1 and not self.sources:
            raise InputError("the mixture has no datasets; give (corpus, split) pairs or synthetic_share 1.")

    def sample(self, index: int, seed: int | None = None) -> Sample:
        """Return draw number `index`, the same one for the same seed and index."""
        return self.draw(np.random.default_rng([self.seed if seed is None else seed, index]))

    def draw(self, rng: np.random.Generator) -> Sample:
        """Return one sample drawn with `rng`."""
        if rng.random() < self.synthetic_share:
            from ullsam.data.synthetic import generate

            style = self.synthetic[rng.integers(len(self.synthetic))]
            return generate(style, int(rng.integers(2**31)), self.synthetic_size)
        corpus, records = self.sources[rng.integers(len(self.sources))]
        return self._cache.read(corpus, records[rng.integers(len(records))])


class _Cache:
    """The most recently read samples, as small as they can be kept."""

    def __init__(self, limit: float):
        self.limit, self.used = limit, 0
        self._kept: OrderedDict[object, Sample] = OrderedDict()

    def read(self, corpus: Corpus, record: Record) -> Sample:
        key = record.image_path
        if key in self._kept:
            self._kept.move_to_end(key)
        else:
            small = _pack(corpus.read(record))
            self._kept[key] = small
            self.used += _bytes(small)
        sample = _unpack(self._kept[key])
        while self.used > self.limit and self._kept:
            self.used -= _bytes(self._kept.popitem(last=False)[1])
        return sample


def _bytes(sample: Sample) -> int:
    return sample.image.nbytes + sample.labels.nbytes


def _pack(sample: Sample) -> Sample:
    """One channel for a grey image, 16 bits for the ids."""
    image = sample.image[..., 0].copy() if is_grey(sample.image) else sample.image
    labels = sample.labels
    if labels.max() > np.iinfo(np.uint16).max:
        labels = renumbered(labels)
    dtype = np.uint16 if labels.max() <= np.iinfo(np.uint16).max else np.int32
    return Sample(image, labels.astype(dtype), sample.meta, sample.name)


def _unpack(small: Sample) -> Sample:
    image = cv2.merge([small.image] * 3) if small.image.ndim == 2 else small.image.copy()  # (H,W) -> (H,W,3)
    return Sample(image, small.labels.astype(np.int32), dict(small.meta), small.name)


def is_grey(image: np.ndarray) -> bool:
    """True where the three channels of an RGB image are equal."""
    return np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 1], image[..., 2])
