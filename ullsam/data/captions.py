"""Captions that are true by construction: words from metadata, numbers measured on the instance masks.

A caption has two or three sentences: what kind of image it is; how many objects of what size, shape and
contrast; where they lie. All bands are in the tables below; `caption_claims` reads them back out of a text.
"""

import re
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ullsam.data.io import renumbered
from ullsam.data.phrases import (
    MODALITIES,
    STRUCTURES,
    Structure,
    article,
    find_modality,
    find_specimen,
    find_structure,
    names_modality,
    names_structure,
    without_specimen,
)
from ullsam.errors import InputError

if TYPE_CHECKING:
    from ullsam.data.corpus import Sample

__all__ = [
    "caption",
    "caption_claims",
    "check_claims",
    "contradictions",
    "count_band",
    "measure",
    "names_modality",
    "names_structure",
]

# (smallest count of the band, its words); exact up to ten
COUNTS = (
    (0, "no"),
    (1, "one"),
    (2, "two"),
    (3, "three"),
    (4, "four"),
    (5, "five"),
    (6, "six"),
    (7, "seven"),
    (8, "eight"),
    (9, "nine"),
    (10, "ten"),
    (11, "about a dozen"),
    (15, "about twenty"),
    (25, "about thirty"),
    (35, "about forty"),
    (45, "about fifty"),
    (65, "about eighty"),
    (95, "more than a hundred"),
)
# (upper bound, words) of the median equivalent diameter over the image side, the median axis ratio, the share
# of the image covered, the share of objects that touch another, and the spread of diameters
SIZES = ((0.04, "tiny"), (0.09, "small"), (0.18, "medium-sized"), (0.4, "large"), (np.inf, "very large"))
SHAPES = ((1.3, "round"), (2.0, "oval"), (np.inf, "elongated"))
COVERS = (
    (0.05, "very little"),
    (0.15, "about a tenth"),
    (0.3, "about a quarter"),
    (0.42, "about a third"),
    (0.6, "about half"),
    (np.inf, "most"),
)
TOUCHES = (
    (1e-9, "they do not touch"),
    (0.25, "few of them touch"),
    (0.6, "some of them touch"),
    (1 - 1e-9, "most of them touch"),
    (np.inf, "all of them touch"),
)
SPREADS = ((0.35, "their sizes are similar"), (0.8, "their sizes vary"), (np.inf, "their sizes vary widely"))
PLACES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "centre": "in the centre",
    "evenly spread": "evenly spread over the view",
    "scattered": "scattered over the view",
}
CONTRASTS = {
    "brighter": "brighter than the background",
    "darker": "darker than the background",
    "similar": "about as bright as the background",
}
SIDED = 0.85  # the share of objects on one side, or in the centre, that makes it the place
CONTRAST = 0.5  # standard deviations of gray between objects and background that count as brighter or darker


def count_band(n: int) -> str:
    """The words for a number of objects: exact up to ten, then bands of COUNTS."""
    return [words for smallest, words in COUNTS if n >= smallest][-1]


def _band(value: float, table: tuple) -> str:
    return next(words for bound, words in table if value < bound)


# ---------------------------------------------------------------- measuring


def measure(image: np.ndarray, labels: np.ndarray) -> dict:
    """Measure what a caption says about the instances of one image.

    Args:
        image: uint8 (H, W, 3) or (H, W).
        labels: integers (H, W), 0 background; any positive ids.

    Returns:
        count; diameter and diameter_spread: median over the image's side (the square root of H * W) and
        (84th - 16th percentile) / median of the diameters of circles of equal area; covered: share of the
        image; location: the best key of PLACES, and locations: all keys that are true; contrast: a key of
        CONTRASTS; elongation: median ratio of the principal axes; touching: share of instances that touch
        another.
        Without instances location and contrast are None.

    Raises:
        InputError: image and labels differ in size, or labels are not integers.
    """
    _check(image, labels)
    ids, n = _consecutive(labels)
    if n == 0:
        return {
            "count": 0,
            "diameter": 0.0,
            "diameter_spread": 0.0,
            "covered": 0.0,
            "location": None,
            "locations": (),
            "contrast": None,
            "elongation": 0.0,
            "touching": 0.0,
        }
    area, centre, elongation = _moments(ids, n)
    diameter = 2 * np.sqrt(area / np.pi) / np.sqrt(ids.size)
    low, median, high = np.percentile(diameter, (16, 50, 84))
    locations = _locations(centre)
    return {
        "count": n,
        "diameter": float(median),
        "diameter_spread": float((high - low) / median),
        "covered": float(area.sum() / ids.size),
        "location": locations[0],
        "locations": locations,
        "contrast": _contrast(image, ids),
        "elongation": float(np.median(elongation)),
        "touching": _touching(ids, n),
    }


def _check(image: np.ndarray, labels: np.ndarray) -> None:
    if labels.ndim != 2 or image.shape[:2] != labels.shape:
        raise InputError(f"image has shape {image.shape} but labels {labels.shape}; give labels of the image's size.")
    if labels.dtype.kind not in "iub":
        raise InputError(f"labels are {labels.dtype}; give whole numbers, 0 for background.")


def _consecutive(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Labels with ids 1..n, int64, and n."""
    ids = np.maximum(labels.astype(np.int64), 0)
    if ids.max(initial=0) > 4 * ids.size:
        ids = renumbered(ids)
    present = np.bincount(ids.ravel()) > 0
    present[0] = False
    return np.where(present, np.cumsum(present), 0)[ids], int(present.sum())


def _moments(ids: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Area (n,) in pixels, centre (n, 2) as shares of width and height, ratio of the principal axes (n,)."""
    y, x = np.nonzero(ids)
    owner = ids[y, x] - 1

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, values, n) / area

    area = np.bincount(owner, minlength=n).astype(float)
    cx, cy = mean(x), mean(y)
    dx, dy = x - cx[owner], y - cy[owner]
    xx, yy, xy = mean(dx * dx) + 1 / 12, mean(dy * dy) + 1 / 12, mean(dx * dy)
    split = np.sqrt((xx - yy) ** 2 / 4 + xy**2)
    ratio = np.sqrt(((xx + yy) / 2 + split) / np.maximum((xx + yy) / 2 - split, 1e-9))
    return area, np.stack(((cx + 0.5) / ids.shape[1], (cy + 0.5) / ids.shape[0]), -1), ratio


def _locations(centre: np.ndarray) -> tuple[str, ...]:
    """All keys of PLACES that hold for centres (n, 2) in 0..1, the best one first."""
    x, y = centre.T
    sides = {"left": x < 0.5, "right": x > 0.5, "top": y < 0.5, "bottom": y > 0.5}
    away = {"left": 0.5 - x, "right": x - 0.5, "top": 0.5 - y, "bottom": y - 0.5}
    inner = 1 / 6 if len(centre) == 1 else 1 / 4
    if (abs(centre - 0.5) < inner).all(1).mean() >= SIDED:
        return ("centre",)
    found = [side for side in sides if sides[side].mean() >= SIDED]
    if found:
        return tuple(sorted(found, key=lambda side: -away[side].mean()))
    quarters = np.bincount((x > 0.5) * 2 + (y > 0.5), minlength=4) / len(centre)
    return ("evenly spread", "scattered") if quarters.min() >= 0.12 else ("scattered",)


def _contrast(image: np.ndarray, ids: np.ndarray) -> str:
    """A key of CONTRASTS: mean gray of objects less background, in standard deviations of the image."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
    inside = (ids > 0).astype(np.uint8)
    if inside.all():
        return "similar"
    spread = max(float(cv2.meanStdDev(gray)[1].item()), 1e-6)
    gap = (cv2.mean(gray, inside)[0] - cv2.mean(gray, 1 - inside)[0]) / spread
    return "brighter" if gap > CONTRAST else "darker" if gap < -CONTRAST else "similar"


def _touching(ids: np.ndarray, n: int) -> float:
    """Share of the n instances that have a pixel of another among the eight around one of their own."""
    touches = np.zeros(n + 1, bool)
    for a, b in ((ids[1:], ids[:-1]), (ids[:, 1:], ids[:, :-1]), (ids[1:, 1:], ids[:-1, :-1]), (ids[1:, :-1], ids[:-1, 1:])):
        meet = (a != b) & (a > 0) & (b > 0)
        touches[a[meet]] = touches[b[meet]] = True
    return float(touches.sum() / n)


# ---------------------------------------------------------------- writing


def caption(sample: "Sample", rng: np.random.Generator) -> str:
    """Write two or three short sentences about one image, true to its metadata and masks.

    Args:
        sample: image, labels and meta; fields of meta that are missing give neutral words.
        rng: picks among a few wordings of the same facts.

    Returns:
        Text whose first sentence names modality, structure and specimen.
    """
    facts = measure(sample.image, sample.labels)
    structure = find_structure(sample.meta) or Structure("object", "objects", "", "")
    first = _opening(sample.meta, structure, facts["count"], rng)
    if facts["count"] == 0:
        return f"{first} Only background is visible."
    return " ".join((first, _amounts(structure, facts, rng), _arrangement(facts, rng)))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _pick(options: list[str], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def _opening(meta: dict, structure: Structure, count: int, rng: np.random.Generator) -> str:
    """The first sentence: modality, structure and specimen."""
    row, specimen = find_modality(meta), find_specimen(meta)
    modality = row.name if row else "microscopy"
    things, place = structure.many, f" in {specimen}" if specimen else ""
    if count == 0:
        return f"{_capital(article(modality))} image{f' of {specimen}' if specimen else ''} with no {things}."
    if count == 1:
        things = article(structure.one)
    options = [
        f"{article(modality)} image of {things}{place}.",
        f"this is {article(modality)} image of {things}{place}.",
        f"this {modality} image shows {things}{place}.",
        f"{things}{place}, seen by {modality}.",
        f"{modality} of {specimen} showing {things}." if specimen else f"{modality} showing {things}.",
    ]
    return _capital(_pick(options, rng))


def _amounts(structure: Structure, facts: dict, rng: np.random.Generator) -> str:
    """The second sentence: count, size, shape and contrast."""
    size, shape = _band(facts["diameter"], SIZES), _band(facts["elongation"], SHAPES)
    words, one = f"{count_band(facts['count'])} {size} {shape}", facts["count"] == 1
    noun, verb = (structure.one, "is") if one else (structure.many, "are")
    contrast = CONTRASTS[facts["contrast"]]
    options = [
        f"there {verb} {words} {noun}, {contrast}.",
        f"it shows {words} {noun}, {contrast}.",
        f"the view holds {words} {noun}, {contrast}.",
        f"{words} {noun} {verb} visible, {contrast}.",
    ]
    return _capital(_pick(options, rng))


def _arrangement(facts: dict, rng: np.random.Generator) -> str:
    """The third sentence: where, how much of the image, and either touching or the spread of sizes."""
    place, cover = PLACES[facts["location"]], _band(facts["covered"], COVERS)
    one = facts["count"] == 1
    they, be, lie, fill = ("it", "is", "lies", "covers") if one else ("they", "are", "lie", "cover")
    options = [
        f"{they} {be} {place} and {fill} {cover} of the image",
        f"{they} {lie} {place}, covering {cover} of the image",
        f"{they} {fill} {cover} of the image and {be} {place}",
    ]
    detail = [_band(facts["touching"], TOUCHES)]
    if facts["count"] >= 3:
        detail.append(_band(facts["diameter_spread"], SPREADS))
    ending = "" if one else f"; {_pick(detail, rng)}"
    return f"{_capital(_pick(options, rng))}{ending}."


# ---------------------------------------------------------------- reading back


def _first(text: str, phrases: dict[str, str]) -> str | None:
    """The key whose pattern occurs first in the text."""
    hits = {key: re.search(pattern, text) for key, pattern in phrases.items()}
    return min((key for key in hits if hits[key]), key=lambda key: hits[key].start(), default=None)


def _claimed_modality(text: str) -> str | None:
    """The most special modality that the text names first."""
    wider = {row.wider for row in MODALITIES if row.wider and re.search(row.text, text)}
    return _first(text, {row.name: row.text for row in MODALITIES if row.name not in wider})


def _claimed_structure(text: str) -> str | None:
    """The plural of the structure that the text names most often, the earlier one of equals."""
    plain = without_specimen(text)
    named = {row.many: list(re.finditer(row.text, plain, re.IGNORECASE)) for row in STRUCTURES}
    found = [many for many in named if named[many]]
    return min(found, key=lambda many: (-len(named[many]), named[many][0].start()), default=None)


def _claimed_count(text: str) -> str | None:
    """The first count, in words or digits, as words of COUNTS."""
    words = sorted((words for _, words in COUNTS), key=len, reverse=True)
    hit = re.search(rf"(?i)\b(?:({'|'.join(words)})|(\d{{1,6}}))\b(?! ?%)", text)
    if hit is None:
        return None
    return hit[1].lower() if hit[1] else count_band(int(hit[2]))


def caption_claims(text: str) -> dict:
    """Read back what a caption claims.

    Args:
        text: a caption of `caption`, or a model's attempt at one.

    Returns:
        modality: a name of MODALITIES; structure: a plural of STRUCTURES; count: words of COUNTS; location: a
        key of PLACES; contrast: a key of CONTRASTS. None where the text makes no such claim.
    """
    places = {key: rf"(?i)\b{phrase.removesuffix(' over the view')}\b" for key, phrase in PLACES.items()}
    tones = {key: rf"(?i)\b{phrase.removesuffix(' the background')}\b" for key, phrase in CONTRASTS.items()}
    return {
        "modality": _claimed_modality(text),
        "structure": _claimed_structure(text),
        "count": _claimed_count(text),
        "location": _first(text, places),
        "contrast": _first(text, tones),
    }


def check_claims(text: str, sample: "Sample") -> dict[str, bool | None]:
    """Compare the claims of a caption, or of a model's attempt at one, with the ground truth of its image.

    A wider name ("electron microscopy" of a scanning electron micrograph) and each of several places that hold are right.

    Returns:
        For each key of `caption_claims` whether the claim is right; None without such a claim, or where the truth
        cannot decide it, such as a modality where meta has none.
    """
    modality, structure = find_modality(sample.meta), find_structure(sample.meta)
    claims = caption_claims(_drop(text, find_specimen(sample.meta)))
    facts = measure(sample.image, sample.labels)
    if structure not in STRUCTURES and names_structure(text, sample.meta):
        claims["structure"] = structure.many
    true = {
        "modality": _compatible(modality.name) if modality else None,
        "structure": {structure.many} if structure else None,
        "count": {count_band(facts["count"])},
        "location": set(facts["locations"]),
        "contrast": {facts["contrast"]},
    }
    return {key: claim in true[key] if claim and true[key] is not None else None for key, claim in claims.items()}


def contradictions(text: str, sample: "Sample") -> list[str]:
    """The claims of a caption that are wrong by `check_claims`, in its order."""
    return [key for key, right in check_claims(text, sample).items() if right is False]


def _drop(text: str, specimen: str) -> str:
    """The text without one specimen phrase, whose words claim nothing about the structures."""
    return re.sub(rf"(?i)(?<!\w){re.escape(specimen)}(?!\w)", " ", text) if specimen else text


def _compatible(modality: str) -> set[str]:
    """The modality itself, its wider name, and the kinds that a plain "electron microscopy" leaves open."""
    wider = {row.wider for row in MODALITIES if row.name == modality and row.wider}
    return {modality} | wider | {row.name for row in MODALITIES if row.name.endswith(f" {modality}")}
