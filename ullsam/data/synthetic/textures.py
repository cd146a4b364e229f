"""Painters of scenes that imitate no kind of microscopy: random shapes and textures, so that what an object is must be seen.

A network that has met only a few kinds of images learns their grey levels and sizes by heart. Here both are random: objects
from a few pixels to nearly the whole view, which differ from their surroundings in level, texture, colour, wall or hollow.
Source: the idea is domain randomisation (Tobin et al. 2017; SynthSeg, Billot et al. 2023).
"""

import math

import cv2
import numpy as np

from ullsam.data.synthetic.parts import Pen, depth, tidy

Scene = tuple[np.ndarray, np.ndarray]


def shapes(pen: Pen) -> Scene:
    """Single bodies of any size and outline on a textured ground."""
    mean = math.exp(pen.pick(math.log(14), math.log(190)))
    count = int(np.clip(pen.pick(0.05, 0.6) * 256**2 / (math.pi / 4 * mean**2), 1, 60))
    radii = np.clip(mean / 2 * np.exp(pen.rng.normal(0, pen.pick(0.05, 0.5), count)), 5, 115)
    centres, radii = pen.scatter(-np.sort(-radii) * pen.unit, pen.pick(0.6, 1.2))
    power = pen.pick(2.5, 8) if pen.rng.random() < 0.3 else 2.0
    outlines = pen.outlines(centres, radii, pen.pick(1.05, 4), pen.pick(0.01, 0.45), int(pen.pick(3, 9)), power)
    return _paint(pen, pen.fill(outlines))


def packed_shapes(pen: Pen) -> Scene:
    """Bodies that fill the view and touch, apart from gaps of random width."""
    ids, inner = pen.cells(int(math.exp(pen.pick(math.log(4), math.log(60)))))
    kept = pen.rng.random(ids.max() + 1) < pen.pick(0.5, 1.0)
    gap = pen.pick(0.6, 6) * pen.unit * np.clip(1 + 0.35 * pen.clouds(20), 0.3, 2)
    return _paint(pen, tidy(np.where((inner > gap) & kept[ids], ids, 0)))


def _texture(pen: Pen) -> np.ndarray:
    """A random field (S, S) of mean 0: clouds, grain and stripes, each strong or absent."""
    field = pen.pick(0, 0.12) * pen.clouds(pen.pick(4, 60)) + pen.pick(0, 0.1) * pen.grain(pen.pick(0.7, 4))
    if pen.rng.random() < 0.3:
        angle, grid = pen.pick(0, math.pi), np.arange(pen.size, dtype=np.float32)
        across = grid * math.cos(angle) + grid[:, None] * math.sin(angle) + pen.pick(1, 8) * pen.unit * pen.clouds(25)
        field += pen.pick(0.02, 0.15) * np.sin(across * (2 * math.pi / (pen.pick(4, 20) * pen.unit)))
    return field


def _bodies(pen: Pen, labels: np.ndarray, level: float) -> np.ndarray:
    """The inside of the objects (S, S): own texture and levels, sometimes shaded, walled or hollow."""
    inner = depth(labels)
    reach = np.sqrt(np.bincount(labels.ravel()) / math.pi).astype(np.float32)
    deep = np.clip(inner / np.maximum(reach[labels], 1), 0, 1)  # 0 on the border, near 1 in the middle
    body = level + _texture(pen) + pen.values(labels, -1, 1) * pen.pick(0, 0.12) + pen.pick(-0.3, 0.3) * deep
    if pen.rng.random() < 0.4:  # a hollow that looks like anything, also like the ground
        hollow = pen.blur(deep > pen.pick(0.3, 0.7), 1)
        body = body * (1 - hollow) + (pen.pick(0, 1) + _texture(pen)) * hollow
    if pen.rng.random() < 0.5:
        wall = pen.blur(inner < pen.pick(1, 6) * pen.unit, 0.6)
        body = body * (1 - wall) + (pen.pick(0, 1) + 0.5 * _texture(pen)) * wall
    return body


def _clutter(pen: Pen, image: np.ndarray) -> None:
    """Specks and lines that are no objects, painted into the image."""
    for x, y in pen.rng.integers(0, pen.size, (pen.rng.integers(0, 40), 2)).tolist():
        cv2.circle(image, (x, y), max(1, round(pen.pick(0.7, 3) * pen.unit)), pen.pick(0, 1), -1)
    for ends in pen.rng.integers(0, pen.size, (pen.rng.integers(0, 5), 4)).tolist():
        cv2.line(image, ends[:2], ends[2:], pen.pick(0, 1), max(1, round(pen.pick(0.5, 2) * pen.unit)))


def _paint(pen: Pen, labels: np.ndarray) -> Scene:
    """The scene of these objects: textured ground, clutter, bodies, colour in half of the scenes, camera."""
    ground_level = pen.pick(0.1, 0.9)
    level = np.clip(ground_level + pen.rng.choice((-1, 1)) * pen.pick(0.05, 0.6), 0, 1)
    image = (ground_level + _texture(pen)).astype(np.float32)
    if pen.rng.random() < 0.4:
        _clutter(pen, image)
    soft = pen.blur(labels > 0, pen.pick(0.4, 1.8))
    image = image * (1 - soft) + _bodies(pen, labels, level) * soft
    if pen.rng.random() < 0.5:
        tint = soft * pen.pick(-1, 1) + pen.pick(0, 0.3) * pen.clouds(pen.pick(5, 50))
        colours = pen.rng.uniform(0.4, 1, 3), pen.rng.uniform(-0.4, 0.4, 3)
        image = image[..., None] * np.float32(colours[0]) + tint[..., None] * np.float32(colours[1])
    return pen.camera(image.astype(np.float32), pen.pick(0.4, 1.6), pen.pick(0.005, 0.06), 0, 0.2), labels
