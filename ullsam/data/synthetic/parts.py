"""Building stones of synthetic scenes: random fields, a camera, shapes and label maps.

Letters: S side of the square view in pixels, n objects. Methods of `Pen` take lengths in pixels of a 256 px
view and scale them by S / 256, so a larger S shows the same kind of scene in finer pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

SMALLEST = 12  # pixels of the smallest instance that is kept
TURN = 2 * math.pi


@dataclass(frozen=True)
class Pen:
    """What a painter draws with: one random generator and one view size S."""

    rng: np.random.Generator
    size: int

    @property
    def unit(self) -> float:
        """Pixels of this view per pixel of a 256 px view."""
        return self.size / 256

    def pick(self, low: float, high: float) -> float:
        """A uniform random number."""
        return float(self.rng.uniform(low, high))

    def white(self, *shape: int) -> np.ndarray:
        """Normal noise float32 of a shape, (S, S) if none is given."""
        return self.rng.standard_normal(shape or (self.size, self.size), dtype=np.float32)

    def blur(self, image: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur, also of a boolean mask, as float32."""
        return cv2.GaussianBlur(image.astype(np.float32, copy=False), (0, 0), max(sigma * self.unit, 0.3))

    def clouds(self, cell: float) -> np.ndarray:
        """Smooth random field (S, S) of mean 0 and spread near 1 with blobs about `cell` wide."""
        n = max(3, math.ceil(256 / cell) + 2)
        return self.blur(1.5 * self.stretch(self.white(n, n)), cell / 4)

    def grain(self, sigma: float) -> np.ndarray:
        """White noise (S, S) blurred by `sigma` and brought back to spread 1."""
        return self.blur(self.white(), sigma) * max(1.0, 2 * sigma * self.unit * math.sqrt(math.pi))

    def stretch(self, field: np.ndarray) -> np.ndarray:
        """A small field enlarged to (S, S)."""
        return cv2.resize(field, (self.size, self.size), interpolation=cv2.INTER_CUBIC)

    def values(self, labels: np.ndarray, low: float, high: float) -> np.ndarray:
        """Image float32 (S, S): one random level in low..high per instance, 0 elsewhere."""
        table = self.rng.uniform(low, high, labels.max() + 1).astype(np.float32)
        table[0] = 0
        return table[labels]

    def camera(self, image: np.ndarray, blur: float, noise: float, shot: float = 0.0, uneven: float = 0.15) -> np.ndarray:
        """Light that falls off, a blurred lens, and a sensor with constant and signal-dependent noise."""
        angle, axis = self.pick(0, TURN), np.linspace(-1, 1, self.size, dtype=np.float32)
        ramp = axis * math.cos(angle) + axis[:, None] * math.sin(angle)
        light = 1 + self.pick(0, uneven) * ramp
        image = self.blur(image * (light if image.ndim == 2 else light[..., None]), blur)
        spread = noise + shot * np.sqrt(np.maximum(image, 0))
        return image + spread * self.white(*image.shape)

    def sizes(self, small: float, large: float, cover: tuple[float, float], most: int = 80) -> np.ndarray:
        """Radii in pixels, largest first: mean diameter in small..large, count by the fraction to cover."""
        mean = math.exp(self.pick(math.log(small), math.log(large)))
        count = int(np.clip(self.pick(*cover) * 256**2 / (math.pi / 4 * mean**2), 1, most))
        radii = mean / 2 * np.exp(self.rng.normal(0, self.pick(0.04, 0.35), count))
        return -np.sort(-np.clip(radii, small * 0.4, 70)) * self.unit

    def spots(self, everywhere: bool = False) -> Callable[[], np.ndarray]:
        """A rule that proposes centres (12, 2): over the whole view, around clusters, or in one half."""
        kind = 0 if everywhere else self.rng.choice(3, p=(0.6, 0.22, 0.18))
        hubs, width = self.rng.uniform(0.15, 0.85, (self.rng.integers(1, 4), 2)), self.pick(0.1, 0.2)
        side, axis = self.rng.integers(2), self.rng.integers(2)

        def propose() -> np.ndarray:
            spots = self.rng.uniform(0, 1, (12, 2))
            if kind == 1:
                spots = hubs[self.rng.integers(len(hubs), size=12)] + self.rng.normal(0, width, (12, 2))
            elif kind == 2:
                spots[:, axis] = (spots[:, axis] + side) / 2
            return np.clip(spots, 0.0, 1.0) * self.size

        return propose

    def scatter(self, radii: np.ndarray, gap: float, everywhere: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Centres (n, 2) at least `gap` sums of radii apart and their radii (n,); some may find no room."""
        propose, placed, n = self.spots(everywhere), np.empty((len(radii), 3)), 0
        for radius in radii:
            spots = propose()
            away = np.hypot(*(spots[:, None] - placed[None, :n, :2]).transpose(2, 0, 1))  # (12, n)
            free = np.flatnonzero((away >= gap * (radius + placed[:n, 2])).all(axis=1))
            if len(free):
                placed[n] = (*spots[free[0]], radius)
                n += 1
        return placed[:n, :2], placed[:n, 2]

    def outlines(
        self, centres: np.ndarray, radii: np.ndarray, longest: float, rough: float, waves: int = 4, power: float = 2.0
    ) -> np.ndarray:
        """Closed outlines (n, 72, 2): ellipses (power 2) to squares (6 and more) with random radial waves.

        The axis ratio of each is in 1..longest; `rough` is the height of the waves as a fraction of the radius.
        """
        n, t, k = len(radii), np.linspace(0, TURN, 72, endpoint=False), np.arange(2, 2 + waves)[:, None]
        height = self.rng.normal(0, rough, (n, waves, 1)) / (k - 1)
        phase = self.rng.uniform(0, TURN, (n, waves, 1))
        r = np.clip(1 + (height * np.cos(k * t + phase)).sum(1), 0.3, 2.0)  # (n, 72)
        r = r * radii[:, None] * (abs(np.cos(t)) ** power + abs(np.sin(t)) ** power) ** (-1 / power)
        long = np.sqrt(self.rng.uniform(1, longest, (n, 1)))
        x, y = r * np.cos(t) * long, r * np.sin(t) / long
        angle = self.pick(0, TURN) + self.rng.normal(0, self.rng.choice((0.25, 3.0)), (n, 1))
        c, s = np.cos(angle), np.sin(angle)
        return np.stack((x * c - y * s, x * s + y * c), -1) + centres[:, None]

    def fill(self, outlines: np.ndarray) -> np.ndarray:
        """Label map int32 (S, S) of filled outlines (n, 72, 2); later ones lie on top."""
        labels = np.zeros((self.size, self.size), np.int32)
        for i, outline in enumerate(outlines, 1):
            cv2.fillPoly(labels, [pixels(outline)], i)
        return tidy(labels)

    def rods(self) -> np.ndarray:
        """Label map int32 (S, S) of bent rods of one width that lie next to one another without crossing."""
        labels, along = np.zeros((self.size, self.size), np.int32), np.linspace(-1, 1, 9)
        width = math.exp(self.pick(math.log(6), math.log(26))) * self.unit
        count = int(np.clip(self.pick(0.05, 0.5) * self.size**2 / (4 * width**2), 1, 80))
        propose, bend = self.spots(), self.pick(0, 0.3)
        common, spread = self.pick(0, TURN), self.rng.choice((0.2, 3.0))
        for i in range(1, count + 1):
            length, curve = width * self.pick(1.3, 5.0) / 2, self.rng.normal(0, bend)
            for spot in propose()[:6]:
                angle = common + self.rng.normal(0, spread) + curve * along
                line = spot + (along * length)[:, None] * np.stack((np.cos(angle), np.sin(angle)), -1)
                side = width / 2 * np.stack((-np.sin(angle), np.cos(angle)), -1)
                x, y = np.clip(pixels(np.concatenate((line, line + side, line - side))), 0, self.size - 1).T
                if not labels[y, x].any():
                    cv2.polylines(labels, [pixels(line)], False, i, max(2, round(width)))
                    break
        return tidy(labels)

    def cells(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """A tight packing of wavy cells: ids int32 (S, S) from 1, and pixels float32 (S, S) to the wall."""
        seeds, large = np.full((self.size, self.size), 255, np.uint8), self.pick(0, 0.3)
        for x, y in self.rng.uniform(0, self.size, (count, 2)):
            axes = self.rng.uniform(8, 88, 2) * self.unit if self.rng.random() < large else (2, 2)
            cv2.ellipse(seeds, ((x, y), tuple(axes), self.pick(0, 180)), 0, -1)
        _, ids = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_CCOMP)
        grid, shift = np.arange(self.size, dtype=np.float32), np.zeros((2, self.size, self.size), np.float32)
        for wave, cell in ((self.pick(1, 4), self.pick(10, 18)), (self.pick(3, 9), self.pick(30, 50))):
            shift += wave * self.unit * np.stack((self.clouds(cell), self.clouds(cell)))
        x, y, nearest = shift[0] + grid, shift[1] + grid[:, None], cv2.INTER_NEAREST
        ids = cv2.remap(ids.astype(np.float32), x, y, nearest, borderMode=cv2.BORDER_REFLECT).astype(np.int32)
        return ids, depth(ids)


def pixels(line: np.ndarray) -> np.ndarray:
    """Points rounded to whole pixels, int32."""
    return np.round(line).astype(np.int32)


def tidy(labels: np.ndarray) -> np.ndarray:
    """Keep the largest 4-connected piece of each instance of SMALLEST pixels or more and number them 1..n."""
    from scipy import ndimage

    tidied, n = np.zeros_like(labels), 0
    for i, box in enumerate(ndimage.find_objects(labels), 1):
        if box is None:
            continue
        mine = (labels[box] == i).astype(np.uint8)
        _, pieces, stats, _ = cv2.connectedComponentsWithStats(mine, connectivity=4)
        best = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        if stats[best, cv2.CC_STAT_AREA] >= SMALLEST:
            n += 1
            tidied[box][pieces == best] = n
    return tidied


def depth(labels: np.ndarray) -> np.ndarray:
    """Distance float32 (S, S) in pixels of each object pixel to the border of its own instance, 0 outside."""
    ids, kernel = labels.astype(np.uint16), np.ones((3, 3), np.uint8)
    inside = (labels > 0) & (cv2.dilate(ids, kernel) == cv2.erode(ids, kernel))
    return cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 3)
