"""Balanced, deterministic draws from several datasets and from synthetic microscopy."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import cv2
import numpy as np

from ullsam.data.corpus import Corpus, Record, Sample
from ullsam.data.io import is_grey, renumbered
from ullsam.data.synthetic import generate
from ullsam.data.synthetic.named import KINDS, NamedScene, named_scene
from ullsam.errors import InputError


class Mixture:
    """Endless balanced draws from real datasets and synthetic styles.

    A draw is synthetic with probability `synthetic_fraction`, every style being equally likely; else it is one
    of the datasets, all equally likely, and one of its images. Images are read when drawn and kept in memory;
    ids above 65535 are renumbered.

    Args:
        sources: (corpus, split) pairs; synthetic: styles of `ullsam.data.synthetic`.
        synthetic_fraction: 0 to 1; 1 where there are no sources.
        seed: used by `sample` where it gets none.
        cache_mb: memory for decoded images, in megabytes; the least recently drawn leave first.
        synthetic_size: side of a synthetic image, in pixels.
        named: images in which things can be named, for training with words, beside synthetic ones.

    Raises:
        InputError: nothing to draw from, an unknown split, or a fraction outside 0 to 1.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Corpus, str | None]],
        synthetic: Sequence[str] | None = None,
        synthetic_fraction: float = 0.0,
        seed: int = 0,
        cache_mb: float = 400.0,
        synthetic_size: int = 256,
        named: Sequence[NamedScene] = (),
    ):
        self.sources = [(corpus, corpus.select(split)) for corpus, split in sources]
        self.synthetic = list(synthetic or [])
        self.synthetic_fraction, self.synthetic_size, self.seed = synthetic_fraction, synthetic_size, seed
        self.named = list(named)
        self._cache = _Cache(cache_mb * 1e6)
        if not 0 <= synthetic_fraction <= 1:
            raise InputError(f"synthetic_fraction is {synthetic_fraction}; use a number from 0 to 1.")
        if synthetic_fraction > 0 and not self.synthetic:
            raise InputError("synthetic_fraction is above 0 but no styles are given; name some or use 0.")
        if synthetic_fraction < 1 and not self.sources:
            raise InputError("the mixture has no datasets; give (corpus, split) pairs or synthetic_fraction 1.")

    @property
    def facts(self) -> dict:
        """What is drawn from, in plain values that are equal for equal data, wherever these lie."""
        files = [" ".join(record.file for record in records) for _, records in self.sources]
        names = [hashlib.blake2b(x.encode(), digest_size=8).hexdigest() for x in files]
        return {"sets": names, "styles": self.synthetic, "parts": [self.synthetic_fraction, self.synthetic_size]}

    def sample(self, index: int, seed: int | None = None) -> Sample:
        """Return draw number `index`, the same one for the same seed and index."""
        return self.draw(np.random.default_rng([self.seed if seed is None else seed, index]))

    def draw_named(self, rng: np.random.Generator) -> NamedScene:
        """An image in which things can be named: of those given, each data set equally likely, or a synthetic one."""
        if not self.named or rng.random() < self.synthetic_fraction:
            kind, number = list(KINDS)[rng.integers(len(KINDS))], 3 * int(rng.integers(2**31))
            return named_scene(kind, number, self.synthetic_size, "train")
        by_source = {}
        for scene in self.named:
            by_source.setdefault(scene.name.split("/")[0], []).append(scene)
        scenes = list(by_source.values())[rng.integers(len(by_source))]
        return scenes[rng.integers(len(scenes))]

    def draw(self, rng: np.random.Generator) -> Sample:
        """Return one sample drawn with `rng`."""
        if rng.random() < self.synthetic_fraction:
            style = self.synthetic[rng.integers(len(self.synthetic))]
            return generate(style, int(rng.integers(2**31)), self.synthetic_size)
        corpus, records = self.sources[rng.integers(len(self.sources))]
        return self._cache.read(corpus, records[rng.integers(len(records))])


class _Cache:
    """The most recently read samples, as small as they can be kept: grey images have one channel, most ids 16 bits."""

    def __init__(self, limit: float):
        self.limit, self.used = limit, 0  # bytes
        self._kept: OrderedDict[object, Sample] = OrderedDict()

    def read(self, corpus: Corpus, record: Record) -> Sample:
        """A sample of its own, from memory or from the disk."""
        small = self._kept.pop(record.image_path, None)
        if small is None:
            sample = corpus.read(record)
            image = sample.image[..., 0].copy() if is_grey(sample.image) else sample.image
            most = np.iinfo(np.uint16).max
            labels = renumbered(sample.labels) if sample.labels.max() > most else sample.labels
            labels = labels.astype(np.uint16 if labels.max() <= most else np.int32)
            small = Sample(image, labels, sample.meta, sample.name)
            self.used += small.image.nbytes + small.labels.nbytes
        self._kept[record.image_path] = small  # the last one is the most recent
        while self.used > self.limit and self._kept:
            oldest = self._kept.popitem(last=False)[1]
            self.used -= oldest.image.nbytes + oldest.labels.nbytes
        image = cv2.merge([small.image] * 3) if small.image.ndim == 2 else small.image.copy()  # (H,W) -> (H,W,3)
        return Sample(image, small.labels.astype(np.int32), dict(small.meta), small.name)
