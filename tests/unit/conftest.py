"""What several test files need: a predictor that draws instead of computing, and small corpora."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from ullsam import InputError, generate, write_labels


class _Discs:
    """A predictor whose masks are discs: of `radius` (1 more with knowledge, 2 more per candidate) without negatives' 3."""

    def __init__(self, name="discs", radius=6, vlsa=True):
        config = SimpleNamespace(name=name, trained_with_words=True)
        self.model, self.radius = SimpleNamespace(config=config, vlsa=vlsa or None, encoded=[]), radius

    def set_image(self, image):
        self.image = image
        self.model.encoded.append(image)

    def predict(self, points=None, labels=None, box=None, use_vlk=True, multimask=False):
        size = self.image.shape[:2]
        if points is not None and ((points < 0) | (points >= size[::-1])).any():
            raise InputError("a point lies outside the image")
        masks = [self._mask(size, points, labels, box, self.radius + use_vlk + 2 * k) for k in range(1 + 2 * multimask)]
        return SimpleNamespace(masks=np.array(masks)[None] if multimask else np.array(masks))

    def _mask(self, size, points, labels, box, radius):
        mask, (y, x) = np.zeros(size, bool), np.mgrid[: size[0], : size[1]]
        if box is not None:
            mask = (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])
        table = [] if points is None else sorted(zip(labels, points.tolist(), strict=True), reverse=True)
        for label, (px, py) in table:
            disc = np.hypot(x - px, y - py) <= (radius if label else 3)
            mask = mask | disc if label else mask & ~disc
        return mask

    def describe(self, on_text=None):
        for text in ("two", "two discs"):
            on_text(text)
        return text


@pytest.fixture(scope="session")
def Discs():
    """The class of predictors that draw discs."""
    return _Discs


@pytest.fixture(scope="session")
def make_corpus():
    """A function that makes images/ and masks/ of `count` synthetic images of 64 pixels in a folder, and returns it."""

    def make(folder, count, name="{}.png"):
        for i in range(count):
            sample = generate("fluorescence_nuclei", i, 64)
            for part in ("images", "masks"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / "images" / name.format(i)), sample.image[..., ::-1])
            write_labels(folder / "masks" / name.format(i), sample.labels)
        return folder

    return make
