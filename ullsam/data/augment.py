"""Training views: draw an image from balanced sources, cut an object-centred crop, jitter it.

Letters: S view side in pixels, n instances in a view, B views of a batch. Everything random is drawn from one
generator seeded by (seed, index), so an item never depends on the order or the process in which it is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from ullsam.data.captions import caption
from ullsam.data.corpus import Sample
from ullsam.data.io import is_grey
from ullsam.data.mixture import Mixture
from ullsam.errors import InputError

Crop = tuple[int, int, int]  # x0, y0, side in image pixels
_TRIES = 50  # draws before a mixture counts as having no instances


@dataclass(frozen=True)
class ViewConfig:
    """How views are cut and jittered; every fraction is a probability, every pair the range of a uniform draw."""

    whole: float = 0.15  # fraction of views that show the whole image
    native: float = 0.35  # fraction of views at the scale at which the model later sees the whole image
    object_fraction: tuple[float, float] = (0.08, 0.9)  # longer object side / crop side, log-uniform
    min_crop: int = 64  # smallest crop side, image pixels
    min_area: int = 12  # smaller pieces of an object are removed, view pixels
    tone: float = 0.8  # fraction of views with another gamma, contrast and brightness
    gamma: tuple[float, float] = (-0.7, 0.7)  # exponent of 2
    contrast: tuple[float, float] = (0.6, 1.4)  # about the mean grey level
    brightness: tuple[float, float] = (-30.0, 30.0)  # grey levels
    invert: float = 0.15  # fraction of grey images that are inverted
    grey: float = 0.15  # fraction of colour images that become grey
    gain: tuple[float, float] = (0.8, 1.25)  # per channel of a colour image
    blur: float = 0.2  # fraction of blurred views
    sigma: tuple[float, float] = (0.4, 1.6)  # blur, view pixels
    noise: float = 0.3  # fraction of noisy views
    spread: tuple[float, float] = (2.0, 14.0)  # noise, grey levels


@dataclass(eq=False)
class TrainViews(torch.utils.data.Dataset):
    """A fixed number of square training views of a mixture, item i being a pure function of (seed, i).

    With captions, a view of a whole image that came with a caption keeps that one and is not changed by augmentation.
    """

    mixture: Mixture  # where images come from
    length: int  # number of items
    seed: int = 0  # of all items
    view: int = 256  # S, the side of a view in pixels
    max_instances: int = 8  # the most instances an item offers as training targets
    augment: bool = True  # False switches flips, turns and the jitter of grey levels off; the crop stays
    with_captions: bool = False  # True writes a caption of each view
    canvas: int | None = None  # side at which the model sees a whole image, in pixels; by default the view's
    config: ViewConfig = ViewConfig()

    def __post_init__(self) -> None:
        length, view, most = self.length, self.view, self.max_instances
        if min(length, view, most) < 1:
            raise InputError(f"length, view and max_instances are {length}, {view} and {most}; use at least 1.")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        """Cut view number `index`.

        Returns:
            image: uint8 (S, S, 3).
            valid_mask: bool (S, S), False where there is padding.
            labels: int32 (S, S), all n instances as 1..n in random order; 1 is the object the crop was made for, unless too
                little of it is left.
            instances: int64 (min(n, max_instances),), the ids to train on, 1 first.
            caption: a sentence about the view, "" without captions.
            meta: the sample's facts with its `name` and `crop` (x0, y0, side) in image pixels.

        Raises:
            InputError: the mixture yields no image with an instance.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        rng = np.random.default_rng([self.seed, index])
        sample, target = self._draw(rng)
        for crop, min_area in self._crops(sample.labels, target, rng):
            labels = _renumber(_resize(sample.labels, crop, self.view), target, min_area, rng)
            if labels.max() > 0:
                break
        image = _resize(sample.image, crop, self.view)
        whole = crop == (0, 0, max(sample.labels.shape))  # only there a caption that came with the image holds
        written = str(sample.meta.get("caption", "")) if self.with_captions and whole else ""
        if self.augment and not written:
            image = jitter(image, rng, self.config)
        below, right = (self.view - side for side in labels.shape)  # zeros fill the square
        arrays = image, labels, np.ones(labels.shape, np.uint8)
        image, labels, inside = (cv2.copyMakeBorder(x, 0, below, 0, right, cv2.BORDER_CONSTANT) for x in arrays)
        valid_mask = inside > 0
        if self.augment and not written:
            quarters, mirror = int(rng.integers(4)), rng.random() < 0.5  # one of the eight flips and quarter turns
            turned = (np.rot90(x[:, ::-1] if mirror else x, quarters) for x in (image, labels, valid_mask))
            image, labels, valid_mask = map(np.ascontiguousarray, turned)
        if self.with_captions and not written:
            written = caption(Sample(image, labels, sample.meta, sample.name), rng)
        return {
            "image": image,
            "valid_mask": valid_mask,
            "labels": labels,
            "instances": np.arange(1, min(int(labels.max()), self.max_instances) + 1),
            "caption": written,
            "meta": {**sample.meta, "name": sample.name, "crop": crop},
        }

    def _draw(self, rng: np.random.Generator) -> tuple[Sample, int]:
        """A sample that has instances, and one of them."""
        for _ in range(_TRIES):
            sample = self.mixture.draw(rng)
            ids = np.flatnonzero(np.bincount(sample.labels.ravel())[1:]) + 1
            if len(ids):
                return sample, int(rng.choice(ids))
        raise InputError(f"{_TRIES} images drawn in a row have no instance; check the masks of the datasets.")

    def _crops(self, labels: np.ndarray, target: int, rng: np.random.Generator) -> Iterator[tuple[Crop, int]]:
        """Around the target, else the whole image, else very near; each with the least area that counts."""
        chance, c = rng.random(), self.config
        if c.whole <= chance < c.whole + c.native:
            side = round(max(labels.shape) * self.view / (self.canvas or self.view))
            yield place_crop(labels, target, side, rng), c.min_area
        elif chance >= c.whole:
            yield choose_crop(labels, target, rng, c), c.min_area
        yield (0, 0, max(labels.shape)), c.min_area
        yield choose_crop(labels, target, rng, replace(c, object_fraction=(0.6, 0.6), min_crop=8)), 1


def choose_crop(labels: np.ndarray, target: int, rng: np.random.Generator, config: ViewConfig = ViewConfig()) -> Crop:
    """Choose a square that holds one object at a random size and position.

    Args:
        labels: int (H, W) instance ids; target: the id of the object.
        rng: source of the draw; config: `object_fraction` and `min_crop` are used.

    Returns:
        (x0, y0, side) in pixels; inside the image, but where the side exceeds one of the image's sides it starts at 0 and
        reaches beyond the right or lower border.
    """
    _, _, w, h = cv2.boundingRect((labels == target).view(np.uint8))
    low, high = np.log(config.object_fraction)
    side = round(max(w, h) / np.exp(rng.uniform(low, high)))
    return place_crop(labels, target, max(side, config.min_crop), rng)


def place_crop(labels: np.ndarray, target: int, side: int, rng: np.random.Generator) -> Crop:
    """A square of `side` at a random position that holds the object; smaller where the image is, larger where the object
    is. Arguments and result as in `choose_crop`."""
    x, y, w, h = cv2.boundingRect((labels == target).view(np.uint8))
    side = int(min(max(side, w, h), max(labels.shape)))

    def start(first: int, extent: int, length: int) -> int:
        """First pixel of a window of `side` that holds first..first+extent and stays within 0..length."""
        if side >= length:
            return 0
        return int(rng.integers(max(0, first + extent - side), min(first, length - side) + 1))

    return start(x, w, labels.shape[1]), start(y, h, labels.shape[0]), side


def _resize(array: np.ndarray, crop: Crop, view: int) -> np.ndarray:
    """The part of the crop that lies inside an image or its labels, at the view's scale, without padding."""
    x0, y0, side = crop
    part = array[y0 : y0 + side, x0 : x0 + side]
    height, width = (max(1, round(n * view / side)) for n in part.shape[:2])
    method = cv2.INTER_AREA if view < side else cv2.INTER_LINEAR
    if array.ndim == 2:  # labels; plain INTER_NEAREST would shift them by up to half a pixel against the image
        method = cv2.INTER_NEAREST_EXACT
    return cv2.resize(part, (width, height), interpolation=method)


def _renumber(labels: np.ndarray, target: int, min_area: int, rng: np.random.Generator) -> np.ndarray:
    """Ids 1..n for what covers at least `min_area` pixels: the target first, then a random order."""
    counts = np.bincount(labels.ravel(), minlength=target + 1)
    counts[0] = 0
    ids = rng.permutation(np.flatnonzero(counts >= max(min_area, 1)))
    ids = ids[np.argsort(ids != target, kind="stable")]
    table = np.zeros(len(counts), np.int32)
    table[ids] = np.arange(1, len(ids) + 1)
    return table[labels]


def jitter(image: np.ndarray, rng: np.random.Generator, config: ViewConfig = ViewConfig()) -> np.ndarray:
    """Change grey levels, never positions: tone, inversion, channel gains, blur and noise.

    Args:
        image: uint8 (H, W, 3), without padding; rng: source of the draws; config: ranges and probabilities.

    Returns:
        uint8 (H, W, 3); a grey image stays grey.
    """
    if is_grey(image):
        image = image[..., :1]  # (H,W,3) -> (H,W,1), two thirds of the work saved
    elif rng.random() < config.grey:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    image = _tone(image, rng, config)
    if rng.random() < config.blur:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(*config.sigma))
    if rng.random() < config.noise:
        spread = np.float32(rng.uniform(*config.spread))
        noisy = image + rng.standard_normal(image.shape, dtype=np.float32) * spread
        image = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    image = image.reshape(*image.shape[:2], -1)  # OpenCV drops a single channel: (H,W) -> (H,W,1)
    return cv2.merge([image] * 3) if image.shape[2] == 1 else image


def _tone(image: np.ndarray, rng: np.random.Generator, config: ViewConfig) -> np.ndarray:
    """All changes that depend on the grey level alone, as one table per channel."""
    channels = image.shape[2]
    levels = np.repeat(np.arange(256.0)[:, None], channels, axis=1)  # (256, C)
    if channels > 1:
        levels *= rng.uniform(*config.gain, channels)
    elif rng.random() < config.invert:
        levels = 255 - levels
    if rng.random() < config.tone:
        levels = 255 * (levels / 255) ** 2 ** rng.uniform(*config.gamma)
        counts = [np.bincount(image[..., c].ravel(), minlength=256) for c in range(channels)]
        mean = (np.transpose(counts) * levels).sum() / image.size
        levels = (levels - mean) * rng.uniform(*config.contrast) + mean + rng.uniform(*config.brightness)
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(image), np.ascontiguousarray(table[None]))  # table (1, 256, C)
