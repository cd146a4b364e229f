"""Painters of synthetic scenes: each takes a `Pen`, returns (image float32 about 0..1, labels int32 (S, S)).

Letters: S side of the square view in pixels. Lengths are in pixels of a 256 px view; `pen.unit` scales those
that do not go through a method of the pen.
"""

import math
from functools import partial

import cv2
import numpy as np

from ullsam.data.synthetic.parts import TURN, Pen, depth, pixels, tidy

Scene = tuple[np.ndarray, np.ndarray]


def fluorescence(pen: Pen) -> Scene:
    """Bright, softly textured nuclei with haze on a dark ground; sometimes shown in a false colour."""
    centres, radii = pen.scatter(pen.sizes(10, 110, (0.03, 0.5)), pen.pick(0.75, 1.2))
    labels = pen.fill(pen.outlines(centres, radii, pen.pick(1.1, 2.2), pen.pick(0.01, 0.13)))
    radius = float(radii.mean())
    rim = np.clip(depth(labels) / (radius * pen.pick(0.1, 0.6)) + 0.3, 0, 1)
    texture = pen.pick(0.05, 0.3) * pen.grain(max(1.0, radius / pen.unit / pen.pick(5, 14)))
    image = pen.values(labels, pen.pick(0.25, 0.7), 1.0) * rim * np.clip(1 + texture, 0.3, 2)
    image += pen.pick(0, 0.35) * pen.blur(image, 8) + pen.pick(0.01, 0.15)
    image = pen.camera(image, pen.pick(0.5, 2.2), pen.pick(0, 0.02), pen.pick(0.01, 0.1), 0.4)
    if pen.rng.random() < 0.15:
        image = image[..., None] * pen.rng.permutation(np.float32((0.15, pen.pick(0.15, 1), 1)))
    return image, labels


def phase_contrast(pen: Pen) -> Scene:
    """Spread, spiky or rounded cells with a dark rim and a bright halo on a gray ground with debris."""
    centres, radii = pen.scatter(pen.sizes(18, 100, (0.03, 0.4), 60), pen.pick(0.7, 1.2))
    labels = pen.fill(pen.outlines(centres, radii, pen.pick(1.2, 4.5), pen.pick(0.03, 0.6), 9))
    body, solid, inner = labels > 0, pen.blur(labels > 0, 0.8), depth(labels)
    halo = pen.blur(body, pen.pick(1.5, 4)) - solid
    rim = np.exp(-inner / (pen.pick(1.5, 5) * pen.unit)) * solid
    texture = pen.pick(0.02, 0.1) * pen.grain(1) + pen.pick(0, 0.08) * pen.clouds(7)
    image = pen.pick(0.35, 0.6) + halo * pen.pick(0.2, 1.0) + (texture - pen.pick(-0.02, 0.12)) * solid
    image += rim * (pen.pick(-0.25, 0.05) + pen.pick(0, 0.2) * pen.clouds(10))
    round_up = pen.values(labels, -1, 1) > pen.pick(0.4, 1.2)
    image += pen.pick(0.2, 0.6) * pen.blur(round_up, 1.5) * rim
    nuclei = pen.blur(inner > 0.4 * radii.mean(), 2)
    specks = pen.blur((pen.grain(1.3) > pen.pick(2.7, 3.6)) & ~body, 0.7)
    image += pen.pick(-0.08, 0.06) * nuclei - pen.pick(0.1, 0.5) * specks + 0.015 * pen.clouds(60)
    return pen.camera(image, pen.pick(0.4, 1.1), pen.pick(0.005, 0.03), 0, 0.2), labels


def smear(pen: Pen) -> Scene:
    """Small dark nuclei in wide pale cytoplasm that overlaps like thin glass, on a bright ground."""
    centres, radii = pen.scatter(pen.sizes(45, 170, (0.15, 1.2), 30), pen.pick(0.5, 0.9))
    sheets = pen.outlines(centres, radii, 1.8, pen.pick(0.08, 0.2), 6)
    bare = pen.rng.uniform(0, pen.size, (1 + pen.rng.poisson(2 * pen.rng.random()), 2))
    spots = np.concatenate((centres + pen.rng.normal(0, 0.2, centres.shape) * radii[:, None], bare))
    small = np.maximum(pen.pick(4, 16) * pen.rng.uniform(0.7, 1.4, len(spots)), 3) * pen.unit
    labels = pen.fill(pen.outlines(spots, small, 1.7, pen.pick(0.02, 0.12)))
    texture = pen.pick(0.01, 0.08) * pen.grain(pen.pick(0.8, 2.5))
    image = np.full((pen.size, pen.size), pen.pick(0.78, 0.95), np.float32)
    for outline in sheets:
        sheet = np.zeros_like(image)  # 1 inside, a little more on its edge
        cv2.fillPoly(sheet, [pixels(outline)], 1)
        cv2.polylines(sheet, [pixels(outline)], True, 1.25, max(1, round(pen.unit)))
        image *= 1 - sheet * (1 - pen.pick(0.65, 0.93) - texture)
    dark = pen.values(labels, 1 - pen.pick(0.25, 0.6), 0.8)  # the fraction of the light each nucleus takes
    image *= 1 - pen.blur(dark, 0.7) + (labels > 0) * texture
    image *= 1 - 0.5 * pen.blur(pen.grain(1.2) > pen.pick(3.0, 4.0), 0.6)
    return pen.camera(image, pen.pick(0.4, 1.2), pen.pick(0.003, 0.02), 0, 0.12), labels


def bacteria(pen: Pen) -> Scene:
    """Dark rods with a thin bright edge on a light ground."""
    labels = pen.rods()
    body = pen.blur(labels > 0, pen.pick(0.6, 1.6))
    edge = np.clip(pen.blur(labels > 0, pen.pick(2, 4)) - body, 0, 1)
    core = np.clip(depth(labels) / (6 * pen.unit), 0, 1) * pen.pick(-0.1, 0.15)
    tone = np.maximum(pen.values(labels, 0.6, 1.0), 0.6)
    image = pen.pick(0.5, 0.85) - pen.pick(0.15, 0.5) * body * tone + pen.pick(0, 0.8) * edge + core
    image += 0.02 * pen.clouds(50) + pen.pick(0, 0.03) * pen.grain(1.5)
    return pen.camera(image, pen.pick(0.4, 1.3), pen.pick(0.005, 0.04), 0, 0.2), labels


def cytoplasm(pen: Pen, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Light, grainy cytoplasm between dark walls; the cell ids, 0 on walls; the walls, blurred."""
    ids, inner = pen.cells(count)
    image = pen.pick(0.5, 0.78) + pen.values(ids, -0.1, 0.08) + pen.pick(0.03, 0.1) * pen.grain(1.6)
    image += pen.pick(0, 0.06) * pen.clouds(8)
    line = max(1, round(pen.unit))
    for x, y in pen.rng.integers(0, pen.size, (pen.rng.integers(0, 260), 2)).tolist():
        cv2.circle(image, (x, y), max(1, round(pen.pick(1.5, 3.5) * pen.unit)), pen.pick(0.05, 0.45), line)
    wall = inner < pen.pick(0.8, 2.2) * pen.unit * (1 + 0.35 * pen.clouds(20))
    veil = pen.blur(wall, 0.7)
    return image * (1 - veil) + pen.pick(0.08, 0.3) * veil, np.where(wall, 0, ids), veil


def with_mitochondria(pen: Pen, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The scene with dark bodies on `labels`: outer membrane, stripes (cristae), a light moat around."""
    inner, angle = depth(labels), pen.values(labels, 0, math.pi)
    grid = np.arange(pen.size, dtype=np.float32)
    across = grid * np.cos(angle) + grid[:, None] * np.sin(angle) + pen.pick(1, 8) * pen.unit * pen.clouds(20)
    stripes = np.sin(across * (TURN / (pen.pick(5, 13) * pen.unit))) + 0.6 * pen.clouds(8)
    matrix = pen.values(labels, 0.28, pen.pick(0.35, 0.52)) + pen.pick(0.02, 0.07) * pen.grain(1.2)
    matrix += pen.pick(0.02, 0.2) * np.clip(stripes, -1, 1) * np.clip(inner / (4 * pen.unit) - 0.5, 0, 1)
    matrix = np.where(inner < 1.6 * pen.unit, pen.pick(0.08, 0.25), matrix)
    moat = pen.blur(cv2.dilate((labels > 0).astype(np.uint8), np.ones((5, 5), np.uint8)), 1.5)
    body = pen.blur(labels > 0, 0.6)
    image = image * (1 - moat) + pen.pick(0.5, 0.7) * moat
    return image * (1 - body) + matrix * body


def neurites(pen: Pen) -> Scene:
    """Tightly packed light cross-sections of many sizes between dark membranes, some with a mitochondrion."""
    image, ids, veil = cytoplasm(pen, int(math.exp(pen.pick(math.log(6), math.log(76)))))
    if pen.rng.random() < 0.4:
        centres, radii = pen.scatter(pen.rng.uniform(8, 28, pen.rng.integers(1, 5)) * pen.unit, 1.2)
        bodies = np.where(veil < 0.1, pen.fill(pen.outlines(centres, radii, 2.2, 0.08)), 0)
        image = image * veil + with_mitochondria(pen, image, bodies) * (1 - veil)
    return pen.camera(image, pen.pick(0.5, 1.1), pen.pick(0.03, 0.12), 0, 0.1), tidy(ids)


def mitochondria(pen: Pen) -> Scene:
    """Dark oval bodies with an outer membrane and stripes inside textured cytoplasm."""
    image, _, _ = cytoplasm(pen, pen.rng.integers(3, 40))
    centres, radii = pen.scatter(pen.sizes(22, 115, (0.03, 0.3), 16), pen.pick(1.0, 1.3))
    labels = pen.fill(pen.outlines(centres, radii, pen.pick(1.1, 3.0), pen.pick(0.03, 0.14)))
    image = with_mitochondria(pen, image, labels)
    return pen.camera(image, pen.pick(0.4, 1.0), pen.pick(0.03, 0.12), 0, 0.1), labels


def _axon_map(pen: Pen) -> np.ndarray:
    """Map int32 (S, S) of a packed bundle: 1..n inside of each axon, -1 its myelin, 0 between them."""
    radii = pen.sizes(14, 100, (0.8, 3.0), 140) * np.exp(-np.abs(pen.rng.normal(0, pen.pick(0, 0.6))))
    radii = radii * np.exp(-np.abs(pen.rng.normal(0, 0.35, len(radii))))
    radii = -np.sort(-np.maximum(radii, 5 * pen.unit))
    centres, radii = pen.scatter(radii, pen.pick(0.8, 1.05), pen.rng.random() < 0.7)
    outer = pen.outlines(centres[:80], radii[:80], 1.7, pen.pick(0.03, 0.14))
    bore = pen.pick(0.45, 0.8) + pen.rng.normal(0, 0.05, (len(outer), 1, 1))
    middle, scene = centres[:80, None], np.zeros((pen.size, pen.size), np.int32)
    for i, (ring, hole) in enumerate(zip(outer, middle + (outer - middle) * bore, strict=True), 1):
        cv2.fillPoly(scene, [pixels(ring)], -1)
        cv2.fillPoly(scene, [pixels(hole)], i)
    return scene


def _axons(pen: Pen, inside: tuple, myelin: tuple, ground: tuple) -> Scene:
    """Axons inside rings of myelin, the gray levels given as ranges; the label is the inside of each ring."""
    scene = _axon_map(pen)
    labels = tidy(np.maximum(scene, 0))
    image = pen.pick(*ground) + pen.pick(0.02, 0.09) * pen.clouds(9) + pen.pick(0, 0.08) * pen.grain(1.5)
    fill = pen.values(np.maximum(scene, 0), inside[0], pen.pick(*inside)) + 0.03 * pen.grain(1)
    image = np.where(scene > 0, fill, image)
    image = np.where(scene < 0, pen.pick(*myelin) + pen.pick(0.03, 0.12) * pen.clouds(4), image)
    return pen.camera(image, pen.pick(0.6, 1.6), pen.pick(0.02, 0.08), 0, 0.2), labels


# dark axons in bright rings, and light axons in dark rings
sem_axons = partial(_axons, inside=(0.05, 0.3), myelin=(0.6, 0.95), ground=(0.08, 0.5))
tem_axons = partial(_axons, inside=(0.6, 0.85), myelin=(0.05, 0.25), ground=(0.4, 0.7))


def _bodies(pen: Pen, gap: float) -> Scene:
    """The height float32 (S, S) of balls, ovals or cubes as half ellipsoids, 0..1, and their labels."""
    centres, radii = pen.scatter(pen.sizes(12, 120, (0.05, 0.7)), gap)
    cubes = pen.rng.random() < 0.4
    power, rough = (pen.pick(2.5, 9), pen.pick(0.01, 0.12)) if cubes else (2.0, 0.02)
    labels = pen.fill(pen.outlines(centres, radii, pen.pick(1.0, 1.8), rough, 5, power))
    reach = np.sqrt(np.bincount(labels.ravel()) / math.pi).astype(np.float32)
    steep = np.clip(depth(labels) / np.maximum(reach[labels], 1), 0, 1)
    return np.sqrt(steep * (2 - steep)), labels


def sem_particles(pen: Pen) -> Scene:
    """Bright, shaded bodies with glowing edges that cast soft shadows on a darker ground."""
    height, labels = _bodies(pen, pen.pick(0.7, 1.05))
    body = pen.blur(labels > 0, 0.6)
    ground = pen.pick(0.1, 0.4) + pen.pick(0, 0.06) * pen.clouds(pen.pick(5, 40))
    ground *= 1 - pen.pick(0, 0.6) * pen.blur(labels > 0, 5)
    angle, relief = pen.pick(0, TURN), pen.blur(height, 2) * pen.unit
    tilt = math.cos(angle) * cv2.Sobel(relief, -1, 1, 0) + math.sin(angle) * cv2.Sobel(relief, -1, 0, 1)
    level = pen.values(labels, pen.pick(0.4, 0.6), pen.pick(0.6, 0.8)) + pen.pick(-0.25, 0.2) * height
    glow = np.exp(-depth(labels) / (pen.pick(1, 3) * pen.unit))
    level += pen.pick(0, 0.5) * tilt + pen.pick(0.1, 0.45) * glow
    level += pen.pick(0, 0.06) * pen.grain(pen.pick(0.8, 2.5))
    image = ground * (1 - body) + level * body
    return pen.camera(image, pen.pick(0.4, 1.2), pen.pick(0.01, 0.07), 0, 0.15), labels


def tem_particles(pen: Pen) -> Scene:
    """Dark bodies, thicker in the middle or hollow, on a light, grainy film."""
    height, labels = _bodies(pen, pen.pick(0.95, 1.2))
    film = pen.pick(0.55, 0.8) + pen.pick(0.02, 0.1) * pen.grain(pen.pick(0.7, 1.8))
    thick = height if pen.rng.random() < 0.75 else 1.15 - height * pen.pick(0.3, 0.7)
    stain = pen.values(labels, pen.pick(0.2, 0.5), pen.pick(0.5, 0.85)) * (0.45 + 0.55 * thick)
    stain *= 1 + pen.pick(0, 0.25) * pen.grain(pen.pick(1, 3))
    image = film * (1 - pen.blur(stain, pen.pick(0.5, 1.2)))
    return pen.camera(image, pen.pick(0.4, 1.0), pen.pick(0.02, 0.1), 0, 0.2), labels


def _fibres(pen: Pen) -> np.ndarray:
    """Wavy stripes (S, S) of spread near 1 along one axis of the view."""
    stripes = cv2.resize(pen.white(85, 10), (pen.size, pen.size))
    grid, bend = np.arange(pen.size, dtype=np.float32), pen.clouds(50) * pen.pick(2, 14) * pen.unit
    rows = grid[:, None] + bend
    stripes = cv2.remap(stripes, grid + 0 * rows, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return stripes if pen.rng.random() < 0.5 else stripes.T


def histology(pen: Pen) -> Scene:
    """Purple nuclei in pink, fibrous tissue with pale gaps."""
    centres, radii = pen.scatter(pen.sizes(10, 44, (0.06, 0.5)), pen.pick(0.8, 1.3))
    labels = pen.fill(pen.outlines(centres, radii, pen.pick(1.2, 2.8), pen.pick(0.03, 0.15)))
    tissue = 0.5 + pen.pick(0.05, 0.25) * pen.clouds(30) + pen.pick(0.02, 0.2) * _fibres(pen)
    tissue += pen.pick(0, 0.08) * pen.grain(1.5)
    gaps = pen.blur(pen.clouds(pen.pick(20, 60)) > pen.pick(0.8, 2.5), 1.5)
    eosin = np.clip(tissue, 0.05, 2) * (1 - pen.pick(0.6, 1) * gaps) * pen.pick(0.5, 1.3)
    body = pen.blur(labels > 0, pen.pick(0.5, 1.2))
    chromatin = pen.values(labels, pen.pick(0.5, 0.9), 1.4) * (1 + pen.pick(0.05, 0.3) * pen.grain(1.5))
    chromatin *= np.where(depth(labels) < 1.5 * pen.unit, 1.15, pen.pick(0.7, 1.1))
    haematoxylin = pen.pick(0.02, 0.25) * np.clip(tissue, 0, 2) + body * chromatin
    eosin = eosin * (1 - 0.5 * body)
    colours = np.float32(((0.65, 0.70, 0.29), (0.12, 0.85, 0.25)) * pen.rng.uniform(0.8, 1.2, (2, 3)))
    density = haematoxylin[..., None] * colours[0] + eosin[..., None] * colours[1]
    image = pen.pick(0.88, 1.0) * np.exp(-np.maximum(density, 0))  # Beer and Lambert's law
    return pen.camera(image, pen.pick(0.5, 1.3), pen.pick(0.005, 0.025), 0, 0.1), labels


def ultrasound(pen: Pen) -> Scene:
    """Speckled tissue layers with one to three dark lesions and a lighter or darker band below them."""
    radii = -np.sort(-pen.rng.uniform(14, 66, pen.rng.choice((1, 1, 1, 2, 3)))) * pen.unit
    centres, radii = pen.scatter(radii, 1.3, everywhere=True)
    labels = pen.fill(pen.outlines(centres * 0.7 + 0.15 * pen.size, radii, 1.8, pen.pick(0.03, 0.2), 6))
    layers = pen.stretch(pen.white(pen.rng.integers(4, 14), 3))
    echo = pen.pick(0.35, 0.6) + pen.pick(0.05, 0.18) * layers + 0.05 * pen.clouds(40)
    below = np.maximum.accumulate(labels > 0, axis=0) & (labels == 0)
    echo += pen.pick(-0.2, 0.15) * pen.blur(below, 6)
    lesion = pen.blur(labels > 0, pen.pick(0.8, 3.5))
    echo = np.clip(echo, 0.15, 1) * (1 - lesion) + pen.pick(0.03, 0.22) * lesion * (1 + 0.2 * pen.clouds(12))
    echo += pen.pick(0, 0.12) * (pen.blur(labels > 0, 5) - lesion)
    fade = 1 - pen.pick(0, 0.5) * np.linspace(0, 1, pen.size, dtype=np.float32)[:, None]
    wide, high = pen.pick(1.2, 3.5) * pen.unit, pen.pick(0.7, 1.5) * pen.unit
    strength = cv2.magnitude(*(cv2.GaussianBlur(pen.white(), (0, 0), wide, sigmaY=high) for _ in range(2)))
    speckle = np.log1p(4 * strength / strength.mean()) / math.log(5)  # near 1; of complex noise, wider than high
    return pen.camera(echo * speckle * fade, 0.4, 0.015, 0, 0.1), labels


# ---------------------------------------------------------------- no kind of microscopy: random shapes and textures

# A network that has met only a few types of images learns their grey levels and sizes by heart. Here both are random: bodies
# from a few pixels to nearly the whole view, which differ from their surroundings in level, texture, colour, wall or hollow.
# Source: the idea is domain randomisation (Tobin et al. 2017; SynthSeg, Billot et al. 2023).


def shapes(pen: Pen) -> Scene:
    """Single bodies of any size and outline on a textured ground."""
    mean = math.exp(pen.pick(math.log(14), math.log(190)))
    count = int(np.clip(pen.pick(0.05, 0.6) * 256**2 / (math.pi / 4 * mean**2), 1, 60))
    radii = np.clip(mean / 2 * np.exp(pen.rng.normal(0, pen.pick(0.05, 0.5), count)), 5, 115)
    centres, radii = pen.scatter(-np.sort(-radii) * pen.unit, pen.pick(0.6, 1.2))
    power = pen.pick(2.5, 8) if pen.rng.random() < 0.3 else 2.0
    outlines = pen.outlines(centres, radii, pen.pick(1.05, 4), pen.pick(0.01, 0.45), int(pen.pick(3, 9)), power)
    return _random_scene(pen, pen.fill(outlines))


def packed_shapes(pen: Pen) -> Scene:
    """Bodies that fill the view and touch, apart from gaps of random width."""
    ids, inner = pen.cells(int(math.exp(pen.pick(math.log(4), math.log(60)))))
    kept = pen.rng.random(ids.max() + 1) < pen.pick(0.5, 1.0)
    gap = pen.pick(0.6, 6) * pen.unit * np.clip(1 + 0.35 * pen.clouds(20), 0.3, 2)
    return _random_scene(pen, tidy(np.where((inner > gap) & kept[ids], ids, 0)))


def _random_texture(pen: Pen) -> np.ndarray:
    """A random field (S, S) of mean 0: clouds, grain and stripes, each strong or absent."""
    field = pen.pick(0, 0.12) * pen.clouds(pen.pick(4, 60)) + pen.pick(0, 0.1) * pen.grain(pen.pick(0.7, 4))
    if pen.rng.random() < 0.3:
        angle, grid = pen.pick(0, math.pi), np.arange(pen.size, dtype=np.float32)
        across = grid * math.cos(angle) + grid[:, None] * math.sin(angle) + pen.pick(1, 8) * pen.unit * pen.clouds(25)
        field += pen.pick(0.02, 0.15) * np.sin(across * (TURN / (pen.pick(4, 20) * pen.unit)))
    return field


def _insides(pen: Pen, labels: np.ndarray, level: float) -> np.ndarray:
    """The inside of the objects (S, S): own texture and levels, sometimes shaded, walled or hollow."""
    inner = depth(labels)
    reach = np.sqrt(np.bincount(labels.ravel()) / math.pi).astype(np.float32)
    deep = np.clip(inner / np.maximum(reach[labels], 1), 0, 1)  # 0 on the border, near 1 in the middle
    body = level + _random_texture(pen) + pen.values(labels, -1, 1) * pen.pick(0, 0.12) + pen.pick(-0.3, 0.3) * deep
    if pen.rng.random() < 0.4:  # a hollow that looks like anything, also like the ground
        hollow = pen.blur(deep > pen.pick(0.3, 0.7), 1)
        body = body * (1 - hollow) + (pen.pick(0, 1) + _random_texture(pen)) * hollow
    if pen.rng.random() < 0.5:
        wall = pen.blur(inner < pen.pick(1, 6) * pen.unit, 0.6)
        body = body * (1 - wall) + (pen.pick(0, 1) + 0.5 * _random_texture(pen)) * wall
    return body


def _clutter(pen: Pen, image: np.ndarray) -> None:
    """Specks and lines that are no objects, painted into the image."""
    for x, y in pen.rng.integers(0, pen.size, (pen.rng.integers(0, 40), 2)).tolist():
        cv2.circle(image, (x, y), max(1, round(pen.pick(0.7, 3) * pen.unit)), pen.pick(0, 1), -1)
    for ends in pen.rng.integers(0, pen.size, (pen.rng.integers(0, 5), 4)).tolist():
        cv2.line(image, ends[:2], ends[2:], pen.pick(0, 1), max(1, round(pen.pick(0.5, 2) * pen.unit)))


def _random_scene(pen: Pen, labels: np.ndarray) -> Scene:
    """The scene of these objects: textured ground, clutter, bodies, colour in half of the scenes, camera."""
    ground_level = pen.pick(0.1, 0.9)
    level = np.clip(ground_level + pen.rng.choice((-1, 1)) * pen.pick(0.05, 0.6), 0, 1)
    image = (ground_level + _random_texture(pen)).astype(np.float32)
    if pen.rng.random() < 0.4:
        _clutter(pen, image)
    soft = pen.blur(labels > 0, pen.pick(0.4, 1.8))
    image = image * (1 - soft) + _insides(pen, labels, level) * soft
    if pen.rng.random() < 0.5:
        tint = soft * pen.pick(-1, 1) + pen.pick(0, 0.3) * pen.clouds(pen.pick(5, 50))
        colours = pen.rng.uniform(0.4, 1, 3), pen.rng.uniform(-0.4, 0.4, 3)
        image = image[..., None] * np.float32(colours[0]) + tint[..., None] * np.float32(colours[1])
    return pen.camera(image.astype(np.float32), pen.pick(0.4, 1.6), pen.pick(0.005, 0.06), 0, 0.2), labels
