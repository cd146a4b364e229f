"""Synthetic scenes in which several structures can be named, with the true mask of each.

Letters: S side of the square view in pixels, n objects. Lengths are in pixels of a 256 px view. Whether a structure is
brighter or darker than what it lies in, and its colour, are drawn anew for each scene: no convention in the picture could
stand in for the words. Only mitochondria are always dark, as they are in stained sections under the electron microscope.
"""

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from ullsam.data.synthetic import scenes
from ullsam.data.synthetic.parts import SMALLEST, TURN, Pen, depth, pixels, tidy
from ullsam.errors import InputError

SPLITS = ("train", "val", "test")
AXES = {"brightness": ("bright", "dark"), "size": ("large", "small"), "shape": ("round", "elongated")}
AXES["side"] = ("left", "right")
NOUNS = ("nucleus", "cell", "particle")  # what attributes are told of
ATTEMPTS = 16  # scenes painted before one that lacks a structure is accepted as an error
MOST = 2**20  # scenes of one seed
LOOKS = ("grey", "fluorescence", "stained")
GLOWS = np.float32(((0.25, 0.4, 1), (0.1, 1, 0.2), (1, 0.2, 0.1), (1, 1, 1), (1, 0.2, 0.9), (0.1, 0.9, 1)))
STAINS = np.float32(((0.65, 0.70, 0.29), (0.12, 0.85, 0.25), (0.85, 0.45, 0.15), (0.27, 0.57, 0.78)))  # optical densities

Maps = dict[str, np.ndarray]
Painted = tuple[np.ndarray, Maps]


@dataclass(frozen=True, eq=False)
class NamedScene:
    """An image and what can be named in it."""

    image: np.ndarray  # uint8 (H, W, 3)
    structures: Maps  # key of referring.toml -> instance map int32 (H, W), 0 elsewhere; different keys may overlap
    absent: tuple[str, ...]  # keys that are certainly not in the image
    name: str
    source: str  # source_id of the data set, which no split divides, or the synthetic kind of scene
    split: str  # "train", "val" or "test"


def with_attributes(structures: Iterable[str]) -> tuple[str, ...]:
    """The keys, and after them those of their attributes: where no particle is, there is no bright one."""
    found = list(structures)
    return (*found, *(f"{name} {noun}" for noun in NOUNS if noun in found for pair in AXES.values() for name in pair))


def synthetic_scenes(count: int, seed: int, size: int = 256, split: str = "train") -> list[NamedScene]:
    """Paint scenes of all kinds in turn, each a pure function of (split, seed, index, size).

    Args:
        count: number of scenes, up to MOST; seed: not negative; size: side S in pixels, at least 64.
        split: "train", "val" or "test", which share no scene, whatever their seeds.

    Raises:
        InputError: an argument outside of these ranges.
    """
    if split not in SPLITS:
        raise InputError(f"split is {split!r}; use one of {', '.join(SPLITS)}.")
    if not 0 <= count <= MOST or seed < 0 or size < 64:
        asked = f"count is {count}, seed {seed}, size {size}"
        raise InputError(f"{asked}; give a count of 0 to {MOST}, a seed of 0 or more and a size of 64 or more.")
    numbers = [(seed * MOST + i) * len(SPLITS) + SPLITS.index(split) for i in range(count)]
    return [named_scene(list(KINDS)[i % len(KINDS)], number, size, split) for i, number in enumerate(numbers)]


def named_scene(kind: str, number: int, size: int, split: str) -> NamedScene:
    """Paint one scene of a kind of `KINDS`; numbers that leave the rest 0, 1, 2 by 3 are those of "train", "val", "test"."""
    rng = np.random.default_rng([zlib.crc32(kind.encode()), number, size])
    for _ in range(ATTEMPTS):
        image, structures = KINDS[kind](Pen(rng, size))
        if all(labels.any() for labels in structures.values()):
            break
    else:
        raise InputError(f"scene {kind!r} number {number} has no room for all its structures; give a larger size.")
    image = np.clip(image * 255, 0, 255).astype(np.uint8)
    image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image
    absent = next(absent for present, absent in ABSENT if present in structures)
    return NamedScene(image, structures, with_attributes(absent), f"synthetic/{kind}/{number}", kind, split)


# ---------------------------------------------------------------- what painters share


def _shade(pen: Pen, look: str, *others: np.ndarray, gap: float = 0.2) -> np.ndarray:
    """A colour (3,) of this look whose mean differs from those of the others by `gap`, or the best of 16."""
    grey = np.repeat(pen.rng.uniform(0.06, 0.94, (16, 1)), 3, 1)
    glow = GLOWS[pen.rng.integers(len(GLOWS), size=16)] * pen.rng.uniform(0.15, 1, (16, 1))
    stain = np.exp(-STAINS[pen.rng.integers(len(STAINS), size=16)] * pen.rng.uniform(0.2, 2.2, (16, 1)))
    colours = {"grey": grey, "fluorescence": glow, "stained": stain}[look].astype(np.float32)
    return max(colours, key=lambda x: min([gap, *(abs(float(x.mean() - y.mean())) for y in others)]))


def _ground(pen: Pen, look: str) -> tuple[np.ndarray, np.ndarray]:
    """The empty view (S, S, 3) with faint clouds, and its colour."""
    level = {"grey": (0.08, 0.92), "fluorescence": (0.01, 0.1), "stained": (0.86, 0.98)}[look]
    colour = np.full(3, pen.pick(*level), np.float32)
    return colour + (pen.pick(0, 0.04) * pen.clouds(40) + pen.pick(0, 0.02) * pen.grain(1.5))[..., None], colour


def _over(pen: Pen, image: np.ndarray, labels: np.ndarray, colour: np.ndarray, relief: np.ndarray | float = 0.0):
    """The image with bodies on `labels`: each a little lighter or darker, textured, with a rim."""
    tone = relief + pen.values(labels, -1, 1) * pen.pick(0, 0.06) + pen.pick(0, 0.06) * pen.clouds(pen.pick(6, 25))
    tone += pen.pick(0.01, 0.06) * pen.grain(pen.pick(0.8, 2.5))
    tone += pen.pick(-0.2, 0.2) * np.exp(-depth(labels) / (pen.pick(1, 2.5) * pen.unit))
    body = pen.blur(labels > 0, pen.pick(0.5, 1.1))[..., None]
    return image * (1 - body) + (colour + tone[..., None] * (0.35 + colour)) * body


def _finish(pen: Pen, image: np.ndarray, look: str) -> np.ndarray:
    image = image[..., 0] if look == "grey" else image
    return pen.camera(image, pen.pick(0.4, 1.1), pen.pick(0.005, 0.04), 0, 0.12)


def _body(pen: Pen, line: np.ndarray) -> np.ndarray:
    return cv2.fillPoly(np.zeros((pen.size, pen.size), np.uint8), [pixels(line)], 1) > 0


def _place(pen: Pen, outlines: np.ndarray, whole: bool = False) -> np.ndarray:
    """Outlines as instances 1..n of int32 (S, S), but none that touches an earlier one or, if `whole`, leaves the view."""
    labels = np.zeros((pen.size, pen.size), np.int32)
    for i, line in enumerate(outlines, 1):
        body, inside = _body(pen, line), line.min() > 2 and line.max() < pen.size - 3
        if (inside or not whole) and body.sum() >= 2 * SMALLEST and not labels[body].any():
            labels[body] = i
    return labels


def _packed(pen: Pen, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells of one size that fill the view: ids (S, S) from 1, pixels to the cell's centre (S, S), centres (n + 1, 2)."""
    step = 2 * radius
    y, x = np.mgrid[radius / 2 : pen.size : step * 0.87, radius / 2 : pen.size : step]
    x = x + (np.arange(len(x)) % 2)[:, None] * radius
    x, y = (np.clip(k + pen.rng.normal(0, 0.22 * radius, k.shape), 0, pen.size - 1).astype(int).ravel() for k in (x, y))
    seeds = np.full((pen.size, pen.size), 255, np.uint8)
    seeds[y, x] = 0
    away, ids = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    centres = np.zeros((ids.max() + 1, 2))
    centres[ids[y, x]] = np.stack((x, y), -1)
    return ids, away, centres


def _within(pen: Pen, hosts: np.ndarray, radius: tuple[float, float], longest: float, deep: float = 0.8, each: int = 1):
    """Bodies inside of the hosts, int32 (S, S), up to `each` in every host.

    radius: in inscribed radii of the host; deep: how far inside their centres lie, as a fraction of that radius.
    """
    from scipy import ndimage

    inner, found, spots = depth(hosts), np.zeros_like(hosts), []
    for i, box in enumerate(ndimage.find_objects(hosts), 1):
        mine = np.where(hosts[box] == i, inner[box], 0) if box else np.zeros((1, 1))
        if mine.max() >= 5 * pen.unit:
            y, x = np.nonzero(mine >= deep * mine.max())
            largest = min(mine.max(), 40 * pen.unit)
            at = pen.rng.integers(len(y), size=each)
            spots += [(i, x[k] + box[1].start, y[k] + box[0].start, largest * pen.pick(*radius)) for k in at]
    if not spots:
        return found
    owner, *centre, radii = np.array(spots).T
    outlines = pen.outlines(np.stack(centre, -1), radii, longest, pen.pick(0.02, 0.08))
    for number, (line, i) in enumerate(zip(outlines, owner, strict=True), 1):
        body = _body(pen, line)
        if not found[body].any():
            found[body & (hosts == i) & (inner > 2 * pen.unit)] = number
    return tidy(found)


def _with_nuclei(pen: Pen, cells: np.ndarray, radius: tuple[float, float]) -> Maps:
    nuclei = _within(pen, cells, radius, 1.5)
    return {"cell": cells, "nucleus": nuclei, "cytoplasm": np.where(nuclei > 0, 0, cells)}


# ---------------------------------------------------------------- painters: Pen -> image about 0..1, maps


def nested(pen: Pen) -> Painted:
    """Cells, single or tightly packed, with a nucleus each."""
    if pen.rng.random() < 0.35:
        ids, _, _ = _packed(pen, pen.pick(16, 44) * pen.unit)
        cells = tidy(np.where(depth(ids) > pen.pick(0.8, 2) * pen.unit, ids, 0))
    else:
        radii = -np.sort(-pen.rng.uniform(0.6, 1, pen.rng.integers(4, 20)) * pen.pick(24, 46)) * pen.unit
        cells = tidy(_place(pen, pen.outlines(*pen.scatter(radii, 0.9), pen.pick(1.2, 2.4), pen.pick(0.03, 0.16))))
    maps, look = _with_nuclei(pen, cells, (0.4, 0.72)), LOOKS[pen.rng.integers(len(LOOKS))]
    image, ground = _ground(pen, look)
    body = _shade(pen, look, ground)
    image = _over(pen, image, cells, body)
    return _finish(pen, _over(pen, image, maps["nucleus"], _shade(pen, look, body)), look), maps


def neuropil(pen: Pen) -> Painted:
    """Neurites cut across between dark membranes, some with mitochondria, as in transmission electron micrographs."""
    image, ids, _ = scenes.cytoplasm(pen, int(math.exp(pen.pick(math.log(8), math.log(50)))))
    neurites = tidy(ids)
    mitochondria = _within(pen, neurites, (0.3, 0.62), pen.pick(1.3, 2.6), 0.45, 2)
    kept = pen.rng.random(mitochondria.max() + 1) < pen.pick(0.35, 1)
    mitochondria = tidy(np.where(kept[mitochondria], mitochondria, 0))
    image = scenes.with_mitochondria(pen, image, mitochondria)
    image = pen.camera(image, pen.pick(0.5, 1.1), pen.pick(0.03, 0.09), 0, 0.1)
    return image, {"neurite": neurites, "mitochondrion": mitochondria}


def axons(pen: Pen) -> Painted:
    """A bundle of axons cut across, many of them in rings of myelin."""
    radii = np.exp(pen.rng.normal(math.log(pen.pick(9, 22)), pen.pick(0.2, 0.5), 90)).clip(6, 60) * pen.unit
    centres, radii = pen.scatter(-np.sort(-radii.clip(7)), 0.92, everywhere=True)
    outer = pen.outlines(centres, radii, 1.5, pen.pick(0.03, 0.09))
    wrapped = pen.rng.random(len(radii)) < np.where(radii > np.median(radii), 0.97, 0.25)
    bore = np.where(wrapped, pen.rng.normal(pen.pick(0.5, 0.75), 0.05, len(radii)), 1 - 1.5 * pen.unit / radii)
    bore = bore.clip(0.45, 1 - 2.5 / radii * wrapped)  # rings are never thinner than two pixels
    fibres = _place(pen, outer)
    inside, wrapped = np.zeros_like(fibres), np.append(False, wrapped)
    for i in np.unique(fibres[fibres > 0]):
        inside[_body(pen, centres[i - 1] + (outer[i - 1] - centres[i - 1]) * bore[i - 1]) & (fibres == i)] = i
    myelin = np.where(wrapped[fibres] & (inside == 0), fibres, 0)
    image, ground = _ground(pen, "grey")
    wall = _shade(pen, "grey", ground, gap=0.25)
    image = _over(pen, _over(pen, image, fibres, wall), inside, _shade(pen, "grey", wall, gap=0.25))
    return _finish(pen, image, "grey"), {
        "axon": inside,
        "myelinated axon": np.where(wrapped[inside], inside, 0),
        "unmyelinated axon": np.where(wrapped[inside], 0, inside),
        "myelin": myelin,
        "myelinated fibre": np.where(wrapped[fibres], fibres, 0),
    }


def colonies(pen: Pen) -> Painted:
    """Groups of touching cells, and cells that lie alone; in half of the scenes their nuclei can be seen."""
    radius = pen.pick(9, 15) * pen.unit
    ids, away, centres = _packed(pen, radius)
    hubs, _ = pen.scatter(np.full(pen.rng.integers(1, 5), pen.pick(34, 48) * pen.unit), 1.1, everywhere=True)
    near = np.linalg.norm(centres[:, None] - hubs, axis=-1) < pen.rng.uniform(24, 44, len(hubs)) * pen.unit
    kept = near.any(1) | (pen.rng.random(len(near)) < 0.05)
    filled = kept[ids] & (away < pen.pick(1.1, 1.35) * radius)
    cells = np.where(filled & (depth(ids) > pen.pick(0.8, 1.5) * pen.unit), ids, 0)
    groups = cv2.connectedComponents(filled.astype(np.uint8), connectivity=4)[1].astype(np.int32)
    sizes = np.array([len(np.unique(ids[groups == i])) for i in range(groups.max() + 1)])
    groups = np.where((groups > 0) & (sizes[groups] != 2), groups, 0)  # two cells are neither a colony nor alone
    maps, look = {"cell": tidy(np.where(groups > 0, cells, 0))}, LOOKS[pen.rng.integers(len(LOOKS))]
    image, ground = _ground(pen, look)
    body = _shade(pen, look, ground)
    image = _over(pen, image, maps["cell"], body)
    if pen.rng.random() < 0.5:
        maps = _with_nuclei(pen, maps["cell"], (0.4, 0.65))
        image = _over(pen, image, maps["nucleus"], _shade(pen, look, body))
    return _finish(pen, image, look), maps | {"colony": tidy(np.where(sizes[groups] > 2, groups, 0))}


def neurons(pen: Pen) -> Painted:
    """Neurons in culture: cell bodies with long, branched dendrites that grow thinner."""
    centres, radii = pen.scatter(np.full(pen.rng.integers(1, 5), pen.pick(13, 22)) * pen.unit, 1.9, everywhere=True)
    somata = _place(pen, pen.outlines(centres, radii, 1.6, 0.08))
    dendrites, owners = np.zeros_like(somata), somata.copy()
    for i in np.unique(somata[somata > 0]):
        count, turn = pen.rng.integers(3, 7), pen.pick(0, TURN)
        for k in range(count):
            arm, angle = np.zeros(somata.shape, np.uint8), turn + TURN * (k + pen.pick(-0.25, 0.25)) / count
            _grow(pen, arm, centres[i - 1], angle, radii[i - 1] * pen.pick(0.35, 0.55))
            free = (arm > 0) & (somata != i)
            if free.sum() >= 4 * SMALLEST and not owners[free].any():
                dendrites[free], owners[free] = dendrites.max() + 1, i
    whole, look = tidy(np.where((somata > 0) | (tidy(dendrites) > 0), owners, 0)), LOOKS[pen.rng.integers(len(LOOKS))]
    dendrites = tidy(np.where(whole > 0, dendrites, 0))
    image, ground = _ground(pen, look)
    image = _over(pen, image, whole, _shade(pen, look, ground), pen.pick(-0.1, 0.2) * pen.blur(somata > 0, 3))
    return _finish(pen, image, look), {"neuron": whole, "soma": somata, "dendrite": dendrites}


def _grow(pen: Pen, arm: np.ndarray, start: np.ndarray, angle: float, width: float, forks: int = 2) -> None:
    """Draw one branch from a point outwards, thinner and thinner, with up to two forks."""
    for step in range(int(pen.pick(9, 22))):
        angle += pen.rng.normal(0, 0.13)
        end = start + 6 * pen.unit * np.array((math.cos(angle), math.sin(angle)))
        cv2.line(arm, pixels(start).tolist(), pixels(end).tolist(), 1, max(2, round(width)))
        start, width = end, max(width * 0.94, 2.2 * pen.unit)
        if forks and step > 4 and pen.rng.random() < 0.07:
            _grow(pen, arm, start, angle - 0.45, width * 0.8, forks - 1)
            angle, forks = angle + 0.35, forks - 1


def powder(pen: Pen) -> Painted:
    """Particles of a powder with small satellites on them, some over the edge."""
    radii = -np.sort(-np.exp(pen.rng.normal(math.log(pen.pick(16, 34)), 0.4, 40)).clip(7, 60)) * pen.unit
    centres, radii = pen.scatter(radii, pen.pick(0.95, 1.15))
    particles = _place(pen, pen.outlines(centres, radii, 1.25, pen.pick(0.01, 0.06)))
    hosts = np.repeat(np.unique(particles[particles > 0]), pen.rng.integers(1, 4)) - 1
    hosts = hosts[pen.rng.random(len(hosts)) < pen.pick(0.4, 0.9)]
    angle, away = pen.rng.uniform(0, TURN, len(hosts)), radii[hosts] * np.sqrt(pen.rng.random(len(hosts)))
    spots = centres[hosts] + (away * np.stack((np.cos(angle), np.sin(angle)))).T
    small = np.maximum(radii[hosts] * pen.rng.uniform(0.14, 0.34, len(hosts)), 3.2 * pen.unit)
    satellites = np.zeros_like(particles)
    for number, (line, host) in enumerate(zip(pen.outlines(spots, small, 1.2, 0.03), hosts + 1, strict=True), 1):
        body = _body(pen, line)
        on_host = (particles[body] == host).sum() > 0.5 * body.sum() >= SMALLEST / 2
        if on_host and np.isin(particles[body], (0, host)).all() and not satellites[body].any():
            satellites[body], particles[body] = number, host
    particles, satellites = tidy(particles), tidy(satellites)
    image, ground = _ground(pen, "grey")
    shade, light = _shade(pen, "grey", ground, gap=0.22), pen.pick(0.1, 0.3) * pen.rng.choice((-1, 1))
    image = _over(pen, image, particles, shade, light * (_height(particles) - 0.7))
    shade = shade + pen.rng.choice((-1, 1)) * pen.pick(0.05, 0.15)
    image = _over(pen, image, satellites, shade, light * (_height(satellites) - 0.7))
    return _finish(pen, image, "grey"), {"particle": particles, "satellite": satellites}


def _height(labels: np.ndarray) -> np.ndarray:
    """Bodies as half spheres: height float32 (S, S) from 0 at the edge to 1."""
    reach = np.sqrt(np.bincount(labels.ravel()) / math.pi).astype(np.float32)
    steep = np.clip(depth(labels) / np.maximum(reach[labels], 1), 0, 1)
    return np.sqrt(steep * (2 - steep))


def population(pen: Pen, axis: str) -> Painted:
    """Nuclei, cells or particles in two groups that differ by brightness, size, shape or side, and in nothing else."""
    noun = NOUNS[pen.rng.integers(len(NOUNS))]
    radii = pen.pick(10, 18) * np.exp(pen.rng.normal(0, 0.07, pen.rng.integers(24, 60))) * pen.unit
    radii[: 12 if axis == "size" else 0] *= pen.pick(1.8, 2.3)
    centres, radii = pen.scatter(radii, pen.pick(1.05, 1.3), everywhere=axis == "side")
    if axis == "side":
        clear = abs(centres[:, 0] - pen.size / 2) > 1.5 * radii
        centres, radii = centres[clear], radii[clear]
    first = {"size": radii > 1.4 * radii.min(initial=99), "side": centres[:, 0] < pen.size / 2}.get(axis)
    first = pen.rng.random(len(radii)) < 0.5 if first is None else first
    outlines = pen.outlines(centres, radii, 1.1 if axis == "shape" else 1.35, pen.pick(0.01, 0.04))
    if axis == "shape":
        outlines[~first] = [_stretched(pen, line) for line in outlines[~first]]
    labels, look = _place(pen, outlines, whole=True), "grey" if noun == "particle" else LOOKS[pen.rng.integers(len(LOOKS))]
    groups = [np.where(np.append(False, member)[labels], labels, 0) for member in (first, ~first)]
    image, ground = _ground(pen, look)
    shade = _shade(pen, look, ground, gap=0.35 if axis == "brightness" else 0.2)
    weak = ground + (shade - ground) * pen.pick(0.25, 0.5) if axis == "brightness" else shade  # the same colour, but paler
    bright, dark = sorted((shade, weak), key=lambda x: -x.mean())
    relief = (_height(labels) - 0.7) * pen.pick(-0.2, 0.25) if noun == "particle" else 0.0
    image = _over(pen, image, labels, np.where(groups[0][..., None] > 0, bright, dark), relief)
    maps = {noun: labels} | {f"{name} {noun}": group for name, group in zip(AXES[axis], groups, strict=True)}
    if noun == "cell":
        maps |= _with_nuclei(pen, labels, (0.35, 0.55))
        sign = 1 if dark.mean() < 0.2 else -1 if bright.mean() > 0.75 else pen.rng.choice((-1, 1))
        image = _over(pen, image, maps["nucleus"], image + sign * pen.pick(0.12, 0.2))
    return _finish(pen, image, look), maps


def _stretched(pen: Pen, line: np.ndarray) -> np.ndarray:
    """An outline (72, 2) stretched to a ratio of 2.2 to 3.4 in a random direction; its area stays."""
    angle, long = pen.pick(0, math.pi), math.sqrt(pen.pick(2.2, 3.4))
    axis = np.array((math.cos(angle), math.sin(angle)))
    return line.mean(0) + (line - line.mean(0)) @ (np.outer(axis, axis) * (long - 1 / long) + np.eye(2) / long)


KINDS = {painter.__name__: painter for painter in (nested, neuropil, axons, colonies, neurons, powder)}
KINDS |= {axis: partial(population, axis=axis) for axis in AXES}
# A structure of a scene, and what is certainly not in it; the first row whose structure is in the scene counts. Only what
# the picture itself rules out: a plain grey disc may be a particle as well as a nucleus, and a nucleus lies in a cell.
MYELIN = ("myelin", "myelinated axon", "myelinated fibre")
ABSENT = (
    ("neurite", (*MYELIN, "nucleus", "soma", "satellite")),
    ("axon", ("mitochondrion", "neuron", "soma", "satellite")),
    ("neuron", (*MYELIN, "mitochondrion", "particle", "satellite")),
    ("particle", (*MYELIN, "mitochondrion", "neurite", "neuron", "soma", "dendrite")),
    ("cell", ("mitochondrion", "neurite", "neuron", "dendrite")),
    ("nucleus", (*MYELIN, "mitochondrion", "neurite", "neuron", "dendrite", "satellite")),
)
