"""Training views: draw an image from balanced sources, cut an object-centred crop, jitter it.

Letters: S view side in pixels, n instances in a view, B views of a batch. Everything random is drawn from one
generator seeded by (seed, index), so an item never depends on the order or the process in which it is read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from ullsam.data.corpus import Sample
from ullsam.data.mixture import Mixture, is_grey
from ullsam.errors import InputError

Crop = tuple[int, int, int]  # x0, y0, side in image pixels
_TRIES = 50  # draws before a mixture counts as having no instances


@dataclass(frozen=True)
class ViewConfig:
    """How views are cut and jittered; every share is a probability, every range a uniform draw."""

    whole: float = 0.15  # share of views that show the whole image
    native: float = 0.35  # share of views at the scale at which the model later sees the whole image
    object_share: tuple[float, float] = (0.08, 0.9)  # longer object side / crop side, log-uniform
    min_crop: int = 64  # smallest crop side, image pixels
    min_area: int = 12  # smaller pieces of an object are removed, view pixels
    tone: float = 0.8  # share of views with another gamma, contrast and brightness
    gamma: tuple[float, float] = (-0.7, 0.7)  # exponent of 2
    contrast: tuple[float, float] = (0.6, 1.4)  # about the mean grey level
    brightness: tuple[float, float] = (-30.0, 30.0)  # grey levels
    invert: float = 0.15  # share of grey images that are inverted
    grey: float = 0.15  # share of colour images that become grey
    gain: tuple[float, float] = (0.8, 1.25)  # per channel of a colour image
    blur: float = 0.2  # share of blurred views
    sigma: tuple[float, float] = (0.4, 1.6)  # blur, view pixels
    noise: float = 0.3  # share of noisy views
    spread: tuple[float, float] = (2.0, 14.0)  # noise, grey levels


class TrainViews(torch.utils.data.Dataset):
    """A fixed number of square training views of a mixture, item i being a pure function of (seed, i).

    Args:
        mixture: where images come from.
        length: number of items.
        seed: of all items.
        view: S, the side of a view in pixels.
        max_instances: the most instances an item offers as training targets.
        augment: False switches flips, turns and the jitter of grey levels off; the crop stays.
        with_captions: True writes a caption of each view; views of a whole image that came with a caption keep that one and
            are not changed by augmentation.
        canvas: side at which the model sees a whole image, in pixels; by default the view's.
        config: ranges and probabilities.
    """

    def __init__(
        self,
        mixture: Mixture,
        length: int,
        seed: int = 0,
        view: int = 256,
        max_instances: int = 8,
        augment: bool = True,
        with_captions: bool = False,
        canvas: int | None = None,
        config: ViewConfig | None = None,
    ):
        if min(length, view, max_instances) < 1:
            raise InputError(f"length, view and max_instances are {length}, {view} and {max_instances}; use at least 1.")
        self.mixture, self.length, self.seed, self.view = mixture, length, seed, view
        self.max_instances, self.augment, self.with_captions = max_instances, augment, with_captions
        self.canvas, self.config = canvas or view, config or ViewConfig()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        """Cut view number `index`.

        Returns:
            image: uint8 (S, S, 3).
            valid_mask: bool (S, S), False where there is padding.
            labels: int32 (S, S), all n instances as 1..n in random order; 1 is the object the crop was made
                for, unless too little of it is left.
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
        (image, labels, valid_mask), crop = self._cut(sample, target, rng)
        written = self._written(sample, crop)
        if self.augment and not written:
            image, labels, valid_mask = _turn((image, labels, valid_mask), rng)
        count = int(labels.max())
        meta = {**sample.meta, "name": sample.name, "crop": crop}
        return {
            "image": image,
            "valid_mask": valid_mask,
            "labels": labels,
            "instances": np.arange(1, min(count, self.max_instances) + 1),
            "caption": written or self._caption(Sample(image, labels, sample.meta, sample.name), rng),
            "meta": meta,
        }

    def _draw(self, rng: np.random.Generator) -> tuple[Sample, int]:
        """A sample that has instances, and one of them."""
        for _ in range(_TRIES):
            sample = self.mixture.draw(rng)
            ids = np.flatnonzero(np.bincount(sample.labels.ravel())[1:]) + 1
            if len(ids):
                return sample, int(rng.choice(ids))
        raise InputError(f"{_TRIES} images drawn in a row have no instance; check the masks of the datasets.")

    def _cut(self, sample: Sample, target: int, rng: np.random.Generator) -> tuple[list[np.ndarray], Crop]:
        """Image, labels and where they are no padding, of the first crop that shows an instance."""
        for crop, min_area in self._crops(sample.labels, target, rng):
            labels = _renumber(_resize_labels(sample.labels, crop, self.view), target, min_area, rng)
            if labels.max() > 0:
                break
        image = _resize_image(sample.image, crop, self.view)
        if self.augment and not self._written(sample, crop):
            image = jitter(image, rng, self.config)
        return [_pad(x, self.view) for x in (image, labels, np.ones(labels.shape, bool))], crop

    def _crops(self, labels: np.ndarray, target: int, rng: np.random.Generator) -> Iterator[tuple[Crop, int]]:
        """Around the target, else the whole image, else very near; each with the least area that counts."""
        kind, c = rng.random(), self.config
        if c.whole <= kind < c.whole + c.native:
            yield place_crop(labels, target, round(max(labels.shape) * self.view / self.canvas), rng), c.min_area
        elif kind >= c.whole:
            yield choose_crop(labels, target, rng, c), c.min_area
        yield (0, 0, max(labels.shape)), self.config.min_area
        near = replace(self.config, object_share=(0.6, 0.6), min_crop=8)
        yield choose_crop(labels, target, rng, near), 1

    def _written(self, sample: Sample, crop: Crop) -> str:
        """The caption in the sample's meta: it holds for the whole, unchanged image only, "" for other views."""
        whole = crop == (0, 0, max(sample.labels.shape))
        return str(sample.meta.get("caption", "")) if self.with_captions and whole else ""

    def _caption(self, sample: Sample, rng: np.random.Generator) -> str:
        if not self.with_captions:
            return ""
        from ullsam.data.captions import caption

        return caption(sample, rng)


def choose_crop(labels: np.ndarray, target: int, rng: np.random.Generator, config: ViewConfig | None = None) -> Crop:
    """Choose a square that holds one object at a random size and place.

    Args:
        labels: int (H, W) instance ids.
        target: the id of the object.
        rng: source of the draw.
        config: `object_share` and `min_crop` are used.

    Returns:
        (x0, y0, side) in pixels; inside the image, but where the side exceeds one of the image's sides it
        starts at 0 and reaches beyond the right or lower border.
    """
    config = config or ViewConfig()
    _, _, w, h = cv2.boundingRect((labels == target).view(np.uint8))
    low, high = np.log(config.object_share)
    side = round(max(w, h) / np.exp(rng.uniform(low, high)))
    return place_crop(labels, target, max(side, config.min_crop), rng)


def place_crop(labels: np.ndarray, target: int, side: int, rng: np.random.Generator) -> Crop:
    """A square of `side` at a random place that holds the object; smaller where the image is, larger where the object
    is. Arguments and result as in `choose_crop`."""
    height, width = labels.shape
    x, y, w, h = cv2.boundingRect((labels == target).view(np.uint8))
    side = int(min(max(side, w, h), max(height, width)))
    return _start(x, w, width, side, rng), _start(y, h, height, side, rng), side


def _start(first: int, extent: int, length: int, side: int, rng: np.random.Generator) -> int:
    """First pixel of a window of `side` that holds first..first+extent and stays within 0..length."""
    if side >= length:
        return 0
    return int(rng.integers(max(0, first + extent - side), min(first, length - side) + 1))


def _resize_image(image: np.ndarray, crop: Crop, view: int) -> np.ndarray:
    """The part of the crop that lies in the image, at the view's scale, without padding."""
    part, size = _part(image, crop, view)
    return cv2.resize(part, size, interpolation=cv2.INTER_AREA if view < crop[2] else cv2.INTER_LINEAR)


def _resize_labels(labels: np.ndarray, crop: Crop, view: int) -> np.ndarray:
    """The same for labels; plain INTER_NEAREST would shift them by up to half a pixel against the image."""
    part, size = _part(labels, crop, view)
    return cv2.resize(part, size, interpolation=cv2.INTER_NEAREST_EXACT)


def _part(array: np.ndarray, crop: Crop, view: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The crop without what lies outside the image, and its (width, height) in the view."""
    x0, y0, side = crop
    part = array[y0 : y0 + side, x0 : x0 + side]
    height, width = (max(1, round(n * view / side)) for n in part.shape[:2])
    return part, (width, height)


def _renumber(labels: np.ndarray, target: int, min_area: int, rng: np.random.Generator) -> np.ndarray:
    """Ids 1..n for what covers at least `min_area` pixels: the target first, then a random order."""
    counts = np.bincount(labels.ravel(), minlength=target + 1)
    counts[0] = 0
    ids = rng.permutation(np.flatnonzero(counts >= max(min_area, 1)))
    ids = ids[np.argsort(ids != target, kind="stable")]
    table = np.zeros(len(counts), np.int32)
    table[ids] = np.arange(1, len(ids) + 1)
    return table[labels]


def _pad(array: np.ndarray, view: int) -> np.ndarray:
    """Zeros on the right and below, up to S x S."""
    height, width = array.shape[:2]
    if height == width == view:
        return array
    padded = np.zeros((view, view, *array.shape[2:]), array.dtype)
    padded[:height, :width] = array
    return padded


def _turn(arrays: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """One of the eight flips and quarter turns of a square, the same for all arrays."""
    quarters, mirror = int(rng.integers(4)), rng.random() < 0.5
    return [np.ascontiguousarray(np.rot90(array[:, ::-1] if mirror else array, quarters)) for array in arrays]


def jitter(image: np.ndarray, rng: np.random.Generator, config: ViewConfig | None = None) -> np.ndarray:
    """Change grey levels, never places: tone, inversion, channel gains, blur and noise.

    Args:
        image: uint8 (H, W, 3), without padding.
        rng: source of the draws.
        config: ranges and probabilities.

    Returns:
        uint8 (H, W, 3); a grey image stays grey.
    """
    config = config or ViewConfig()
    if is_grey(image):
        image = image[..., :1]  # (H,W,3) -> (H,W,1), two thirds of the work saved
    elif rng.random() < config.grey:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    image = _tone(image, rng, config)
    if rng.random() < config.blur:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(*config.sigma))
    if rng.random() < config.noise:
        image = _noisy(image, rng.uniform(*config.spread), rng)
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


def _noisy(image: np.ndarray, spread: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(spread)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
