"""Semantic Boundary Regularization (SBR): from an instance mask to the points that stage 3 trains with.

Positive points come from the eroded inside of the instance, negative points from a thin ring around it, each with
fallbacks for small, huge or missing objects. The paper states its distances on an image of 1024 px. They are scaled here
by s = max(H, W) / 1024, with rules that keep them meaningful on small images and change nothing at 1024 px:

- erosion and dilation take round(10 s) steps of the cross element, at least one (2 at 256 px, where s = 1/4);
- the ring [9 s, 11 s] keeps its middle, is never thinner than one pixel, and its middle is never nearer than
  one pixel: [4.5, 5.5] at 512 px, [2, 3] at 256 px, [0.5, 1.5] at 64 px.

Pixels outside the image count as background: an object at the image border is eroded from there too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from ullsam.errors import InputError

DISTANCE_TOLERANCE = 1e-4  # pixels; distances are roots of integers, near ones lie over 0.01 apart


def positive_points(near: Neighbourhood, rng: np.random.Generator, count: int) -> tuple[np.ndarray, str]:
    """N_p = `count` points inside the instance M, (count, 2) as (x, y), and the name of the case. Source: paper, Eq. 3."""
    inside = np.flatnonzero(near.core())  # E = M after 10 erosions
    if len(inside) >= count:  # (3.1) {p_i} ~ U(E), if |E| >= N_p
        return near.points(rng.choice(inside, count, replace=False)), "core"
    if len(inside):  # (3.2) {p_(i mod |E|)}, p in E, else if |E| > 0
        return near.points(inside[np.arange(count) % len(inside)]), "core_repeated"
    if not near.empty:  # (3.3) {c_M, .., c_M}, the centroid, else if |M| > 0
        return near.centroid().repeat(count, axis=0), "centroid"
    height, width = near.shape  # (3.4) {(W/2, H/2), .., (W/2, H/2)}, otherwise
    return np.repeat([[width // 2, height // 2]], count, axis=0), "image_center"


def negative_points(near: Neighbourhood, rng: np.random.Generator, count: int) -> tuple[np.ndarray, str]:
    """N_n = `count` points outside the instance M, (count, 2), and the name of the case. Source: paper, Eq. 4."""
    ring = np.flatnonzero(near.ring())  # B = {p | 9 <= d(p, boundary of M) <= 11, p not in M}
    if len(ring) >= count:  # (4.1) {p_i} ~ U(B), if |B| >= N_n
        return near.points(rng.choice(ring, count, replace=False)), "ring"
    outside = np.flatnonzero(near.outside())  # O = {p | p not in D(M), p not in M}
    if len(outside) >= count:  # (4.2) {p_i} ~ U(O), else if |O| >= N_n
        return near.points(rng.choice(outside, count, replace=False), whole=True), "outside"
    anywhere = np.flatnonzero(near.labels != near.instance)  # Omega without M
    if not len(anywhere):
        raise InputError(
            f"Instance {near.instance} fills the whole image, so no negative point exists; "
            "ask for n_neg=0 or use a larger crop."
        )
    return near.points(rng.choice(anywhere, count), whole=True), "anywhere"  # (4.3) {p_i} ~ U(Omega without M), otherwise


@dataclass(frozen=True)
class SbrConfig:
    """Distances of SBR in pixels of an image whose longer side is `reference_side`."""

    erosion: float = 10.0  # steps of erosion that leave the core, where positive points come from
    ring: tuple[float, float] = (9.0, 11.0)  # nearest and farthest negative point, both included
    dilation: float = 10.0  # steps of dilation beyond which a negative point lies when the ring is too small
    reference_side: int = 1024  # longer side of the image for which the numbers above are stated
    exclude_other_instances: bool = False  # True: ring and outside hold background only, no other instance

    def __post_init__(self):
        low, high = self.ring
        if not 0 <= low <= high or min(self.erosion, self.dilation) < 0 or self.reference_side <= 0:
            raise InputError(
                f"The distances of {self} are not usable; give 0 <= ring[0] <= ring[1], "
                "erosion >= 0, dilation >= 0 and reference_side > 0."
            )

    def steps(self, distance: float, shape: tuple[int, int]) -> int:
        """Steps of the cross element for `distance` on an image of `shape` (H, W); zero stays zero."""
        return max(1, round(distance * self.scale(shape))) if distance else 0

    def ring_in(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Nearest and farthest distance of the ring in pixels of an image of `shape` (H, W)."""
        low, high = (self.scale(shape) * edge for edge in self.ring)
        middle, half = max((low + high) / 2, 1.0), max((high - low) / 2, 0.5)
        return middle - half, middle + half

    def scale(self, shape: tuple[int, int]) -> float:
        """Pixels of an image of `shape` (H, W) per reference pixel."""
        return max(shape) / self.reference_side


@dataclass(frozen=True)
class SbrPoints:
    """Points of one instance: P positive ones first, then the negative ones."""

    points: np.ndarray  # float32 (P, 2), (x, y) of pixel centres: the pixel is array[y, x]
    labels: np.ndarray  # int64 (P,), 1 inside, 0 outside
    positive_branch: str  # which case: "core", "core_repeated", "centroid" or "image_center"
    negative_branch: str  # which case: "ring", "outside" or "anywhere"


@dataclass(frozen=True)
class SbrRegions:
    """The candidate pixels of one instance, bool (H, W) each."""

    core: np.ndarray  # E, eroded inside
    ring: np.ndarray  # B, beside the boundary
    outside: np.ndarray  # O, beyond the dilation


def sample_points(
    labels: np.ndarray,
    instance: int,
    rng: np.random.Generator,
    n_pos: int = 1,
    n_neg: int = 3,
    config: SbrConfig = SbrConfig(),
    bounds: tuple | None = None,
) -> SbrPoints:
    """Sample the SBR points of one instance.

    Points of the core, the ring and the outside are distinct; those of the last branch, "anywhere", may
    repeat and ignore `exclude_other_instances`. An instance without pixels gives the image centre, and
    negatives from the whole image. The centroid is rounded to a pixel and may, as in the paper, lie outside a
    concave instance.

    Args:
        labels: integer or bool (H, W), the label map; a bool mask is the instance 1.
        instance: id of the instance, not 0.
        rng: numpy random generator, the only source of randomness.
        n_pos, n_neg: number of positive and negative points.
        config: distances and options.
        bounds: bounding box (x, y, width, height) of the instance as from cv2.boundingRect; found if None.
    Returns:
        SbrPoints with n_pos + n_neg points.
    Raises:
        InputError: if `labels` is no label map, or if n_neg > 0 and the instance fills the image.
    Source: paper, section 3.2.2.
    """
    _check(labels, instance)
    if min(n_pos, n_neg) < 0:
        raise InputError(f"n_pos={n_pos} and n_neg={n_neg} cannot be negative; give 0 or more.")
    near = Neighbourhood(labels, instance, config, bounds)
    positives, positive_branch = positive_points(near, rng, n_pos)
    negatives, negative_branch = negative_points(near, rng, n_neg)
    points = np.concatenate([positives, negatives]).astype(np.float32)  # (n_pos + n_neg, 2)
    point_labels = np.repeat(np.array([1, 0], dtype=np.int64), [n_pos, n_neg])
    return SbrPoints(points, point_labels, positive_branch, negative_branch)


def sbr_regions(labels: np.ndarray, config: SbrConfig = SbrConfig(), instance: int = 1) -> SbrRegions:
    """Return the candidate pixels from which `sample_points` draws, for pictures.

    Args:
        labels: integer or bool (H, W), the label map; a bool mask is the instance 1.
        config: distances and options.
        instance: id of the instance, not 0.
    Returns:
        SbrRegions with bool (H, W) arrays core, ring and outside.
    Raises:
        InputError: if `labels` is no label map.
    Source: paper, section 3.2.2, the sets E, B and O.
    """
    _check(labels, instance)
    near = Neighbourhood(labels, instance, config)
    return SbrRegions(near.whole(near.core()), near.whole(near.ring()), near.outside())


def sample_instances(
    labels: np.ndarray,
    rng: np.random.Generator,
    max_instances: int = 4,
    n_pos: int = 1,
    n_neg: int = 3,
    config: SbrConfig = SbrConfig(),
) -> tuple[np.ndarray, ...]:
    """Choose instances without replacement and sample the SBR points of each.

    An instance that fills the image leaves no room for a negative point and is never chosen when n_neg > 0.

    Args:
        labels: integer (H, W), the label map, 0 background.
        rng: numpy random generator.
        max_instances: largest number I of instances.
        n_pos, n_neg: number of positive and negative points per instance, P = n_pos + n_neg.
        config: distances and options.
    Returns:
        ids int64 (I,), points float32 (I, P, 2) as (x, y), point labels int64 (I, P); I may be 0.
    Raises:
        InputError: if `labels` is no label map.
    Source: section 3.3, stage 3 (at most 4 random instances per image).
    """
    _check(labels, instance=1)
    present = instance_ids(labels)
    if n_neg and len(present) == 1 and (labels == present[0]).all():
        present = present[:0]
    ids = rng.choice(present, size=min(max_instances, len(present)), replace=False)
    sampled = [sample_points(labels, int(i), rng, n_pos, n_neg, config) for i in ids]
    count = n_pos + n_neg
    points = np.array([s.points for s in sampled], dtype=np.float32).reshape(len(ids), count, 2)  # (I, P, 2)
    point_labels = np.array([s.labels for s in sampled], dtype=np.int64).reshape(len(ids), count)  # (I, P)
    return ids, points, point_labels


def sample_box(labels: np.ndarray, instance: int, rng: np.random.Generator, jitter: float = 0.0) -> np.ndarray:
    """Return the bounding box of an instance, each edge moved by up to `jitter` times the box's own side.

    Args:
        labels: integer or bool (H, W), the label map.
        instance: id of the instance, not 0.
        rng: numpy random generator; each edge moves by a uniform fraction of the box's width or height.
        jitter: largest fraction, 0 for the exact box.
    Returns:
        float32 (4,), x0, y0, x1, y1: centres of the outermost pixels, inside the image.
    Raises:
        InputError: if the instance has no pixel, or `jitter` is negative.
    """
    _check(labels, instance)
    if jitter < 0:
        raise InputError(f"jitter={jitter} is negative; give a fraction of the box's side, 0 or more.")
    x, y, width, height = cv2.boundingRect((labels == instance).view(np.uint8))
    if not width:
        raise InputError(f"labels holds no pixel of instance {instance}; choose one of instance_ids(labels).")
    edges = np.array([[x, y], [x + width - 1, y + height - 1]], dtype=np.float64)  # (2 corners, xy)
    edges += rng.uniform(-jitter, jitter, size=(2, 2)) * (width, height)
    edges = np.clip(np.sort(edges, axis=0), 0, (labels.shape[1] - 1, labels.shape[0] - 1))
    return edges.reshape(4).astype(np.float32)  # (2, 2) -> x0, y0, x1, y1


def instance_ids(labels: np.ndarray) -> np.ndarray:
    """Return the ids of a label map other than 0, ascending, int64 (I,)."""
    flat = labels.ravel().astype(np.int64)
    if flat.min() < 0 or flat.max() > flat.size:
        ids = np.unique(flat)
    else:
        ids = np.flatnonzero(np.bincount(flat))
    return ids[ids != 0]


class Neighbourhood:
    """The pixels around one instance, cut out so that the transforms cost little on a large image."""

    def __init__(self, labels: np.ndarray, instance: int, config: SbrConfig, bounds=None):
        self.labels, self.instance, self.config, self.shape = labels, instance, config, labels.shape
        if bounds is None:
            bounds = cv2.boundingRect((labels == instance).view(np.uint8))
        x, y, width, height = bounds
        self.erosion, self.dilation = (config.steps(d, self.shape) for d in (config.erosion, config.dilation))
        self.low, self.high = config.ring_in(self.shape)
        margin = max(math.ceil(self.high), self.dilation) + 1
        self.x0, self.y0 = max(x - margin, 0), max(y - margin, 0)
        self.window = np.s_[self.y0 : y + height + margin, self.x0 : x + width + margin]
        self.mask = (labels[self.window] == instance).view(np.uint8)  # (h, w), 1 inside
        self.empty = not self.mask.any()

    def core(self) -> np.ndarray:
        """Cut-out of the instance after n erosions: n steps of the cross remove pixels up to n city blocks deep.

        The same as cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)), iterations=n), in one pass.
        """
        padded = cv2.copyMakeBorder(self.mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        return cv2.distanceTransform(padded, cv2.DIST_L1, cv2.DIST_MASK_3)[1:-1, 1:-1] > self.erosion

    def ring(self) -> np.ndarray:
        """Cut-out of the ring; the instance pixel nearest to a point outside is on the inner boundary."""
        if self.empty:
            return np.zeros(self.mask.shape, dtype=bool)
        distance = cv2.distanceTransform(1 - self.mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        near_enough = distance <= self.high + DISTANCE_TOLERANCE
        far_enough = distance >= max(self.low - DISTANCE_TOLERANCE, 0.5)  # 0.5: never the instance itself
        return near_enough & far_enough & self.allowed(self.labels[self.window])

    def outside(self) -> np.ndarray:
        """Whole image (H, W): neither in the instance nor in its dilation (cv2.dilate with the same cross)."""
        if self.empty:
            return self.allowed(self.labels)
        city_blocks = cv2.distanceTransform(1 - self.mask, cv2.DIST_L1, cv2.DIST_MASK_3)
        return ~self.whole(city_blocks <= self.dilation) & self.allowed(self.labels)

    def allowed(self, labels: np.ndarray) -> np.ndarray:
        """Pixels in which the configuration permits a negative point."""
        return labels == 0 if self.config.exclude_other_instances else labels != self.instance

    def whole(self, cutout: np.ndarray) -> np.ndarray:
        """Put a cut-out back into an array of the image's size."""
        image = np.zeros(self.shape, dtype=bool)
        image[self.window] = cutout
        return image

    def centroid(self) -> np.ndarray:
        """Mean (x, y) of the instance, rounded to a pixel (halves up)."""
        rows, columns = np.nonzero(self.mask)
        return np.floor([[columns.mean() + self.x0 + 0.5, rows.mean() + self.y0 + 0.5]])  # (1, 2)

    def points(self, flat: np.ndarray, whole: bool = False) -> np.ndarray:
        """Flat pixel numbers (P,) of the cut-out, or of the whole image, as points (P, 2) of the image."""
        width, x0, y0 = (self.shape[1], 0, 0) if whole else (self.mask.shape[1], self.x0, self.y0)
        return np.stack([flat % width + x0, flat // width + y0], axis=1)


def _check(labels: np.ndarray, instance: int) -> None:
    """Refuse what is no label map, and the background as an instance."""
    is_array = isinstance(labels, np.ndarray)
    if not is_array or labels.ndim != 2 or labels.dtype.kind not in "biu" or not labels.size:
        found = f"{labels.dtype} {labels.shape}" if is_array else type(labels).__name__
        raise InputError(f"labels is {found}, not an integer array (H, W) with pixels; give one label map.")
    if instance == 0:
        raise InputError("instance=0 is the background; give the id of an object.")
