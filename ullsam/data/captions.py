"""Captions that are true by construction: words from metadata, numbers measured on the instance masks.

A caption has two or three sentences: what kind of image it is; how many objects of what size, shape and contrast; where they
lie. All phrases and bands are in captions.toml; `caption_claims` reads them back out of a text. Modality, structure and
specimen are short canonical phrases, found in the free text of a dataset's meta, the dictionary of a meta.json or of a
synthetic style; every field of it may be missing.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ullsam.data.corpus import Sample
from ullsam.data.io import renumbered
from ullsam.errors import InputError

TABLES = tomllib.loads(Path(__file__).with_name("captions.toml").read_text(encoding="utf-8"))
SPECIMENS, COUNTS, BANDS = TABLES["specimens"], TABLES["counts"], TABLES["bands"]
LOCATIONS, CONTRASTS, WORDINGS = TABLES["locations"], TABLES["contrasts"], TABLES["wordings"]
SIDED = 0.85  # the fraction of objects on one side, or in the centre, that makes it the location
CONTRAST = 0.5  # standard deviations of gray between objects and background that count as brighter or darker
_SPECIMEN_TEXT = "|".join(re.escape(phrase) for _, phrase in SPECIMENS)
# the known phrases for where the structures are, such as "in a human cell culture", which name no structure
_ASIDE = re.compile(rf"(?i)\bin (?:{_SPECIMEN_TEXT})\b|\bof (?:{_SPECIMEN_TEXT})(?= showing| with no)")


@dataclass(frozen=True)
class Modality:
    """A canonical name, the patterns that find it in meta and that name it in a text, and a wider name."""

    name: str
    meta: str
    text: str
    wider: str = ""


@dataclass(frozen=True)
class Structure:
    """Singular and plural of a canonical name, the pattern in meta, the pattern that names it in a text."""

    one: str
    many: str
    meta: str
    text: str


MODALITIES = [Modality(*row) for row in TABLES["modalities"]]
STRUCTURES = [Structure(*row) for row in TABLES["structures"]]


def _read(meta: dict, key: str) -> tuple[str, str]:
    """The free text of a field of meta, and the same without brackets and what follows a comma or semicolon."""
    text = str(meta.get(key) or "").strip()
    return text, re.split(r"[,;]", re.sub(r"\s*[(\[].*?[)\]]", "", text))[0].strip()


def find_modality(meta: dict) -> Modality | None:
    """The row of MODALITIES of meta's modality; other words make a row of their own, no words None."""
    text, own = _read(meta, "modality")
    known = next((row for row in MODALITIES if re.search(row.meta, text)), None)
    return known or (Modality(own, "", rf"(?i)(?<!\w){re.escape(own)}(?!\w)") if own else None)


def find_structure(meta: dict) -> Structure | None:
    """The row of STRUCTURES of meta's structure; other words make a row of their own, no words None."""
    text, own = _read(meta, "structure")
    known = next((row for row in STRUCTURES if re.search(row.meta, text, re.IGNORECASE)), None)
    if known or not own:
        return known
    one, many = own.lower(), plural(own.lower())
    return Structure(one, many, "", rf"(?<!\w)(?:{re.escape(one)}|{re.escape(many)})(?!\w)")


def find_specimen(meta: dict) -> str:
    """A short phrase that follows "in", from the table or meta's own words, "" without any."""
    text, own = _read(meta, "specimen")
    return next((phrase for pattern, phrase in SPECIMENS if re.search(pattern, text, re.IGNORECASE)), own)


def plural(noun: str) -> str:
    """The plural of a noun by the regular rules and the Latin -us, -um and -is."""
    irregular = {"us": "i", "um": "a", "sis": "ses", "ch": "ches", "sh": "shes", "x": "xes", "s": "s"}
    for ending, many in irregular.items():
        if noun.endswith(ending):
            return noun.removesuffix(ending) + many
    return noun[:-1] + "ies" if re.search(r"[^aeiou]y$", noun) else noun + "s"


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it, by the sound of its first letter."""
    vowel = re.match(r"(?i)[aeio]|u(?!ni|se|ti)|(?-i:[FHLMNRSX](?=&|-|[A-Z]))", phrase)
    return f"{'an' if vowel else 'a'} {phrase}"


def names_modality(text: str, meta: dict) -> bool:
    """Whether a text names the modality of meta, by its phrase or a close synonym; False where meta has none.

    A wider name does not count: "electron microscopy" does not name scanning electron microscopy.
    """
    row = find_modality(meta)
    return bool(row and re.search(row.text, text))


def names_structure(text: str, meta: dict) -> bool:
    """Whether a text names the structure of meta, singular or plural or by a close synonym; False where meta has none.

    Words of a known specimen phrase do not count: "nuclei in a human cell culture" names nuclei, not cells.
    """
    row = find_structure(meta)
    return bool(row and re.search(row.text, _ASIDE.sub(" ", text), re.IGNORECASE))


def count_band(n: int) -> str:
    """The words for a number of objects: exact up to ten, then bands of COUNTS."""
    return [words for smallest, words in COUNTS if n >= smallest][-1]


def measure(image: np.ndarray, labels: np.ndarray) -> dict:
    """Measure what a caption says about the instances of one image.

    Args:
        image: uint8 (H, W, 3) or (H, W).
        labels: integers (H, W), 0 background; any positive ids.

    Returns:
        count; diameter and diameter_spread: median over the image's side (the square root of H * W) and (84th - 16th
        percentile) / median of the diameters of circles of equal area; covered: fraction of the image; location: the
        best key of LOCATIONS, and locations: all keys that are true; contrast: a key of CONTRASTS; elongation: median
        ratio of the principal axes; touching: fraction of instances that touch another. Without instances location and
        contrast are None.

    Raises:
        InputError: image and labels differ in size, or labels are not integers.
    """
    if labels.ndim != 2 or image.shape[:2] != labels.shape:
        raise InputError(f"image has shape {image.shape} but labels {labels.shape}; give labels of the image's size.")
    if labels.dtype.kind not in "iub":
        raise InputError(f"labels are {labels.dtype}; give whole numbers, 0 for background.")
    ids = renumbered(np.maximum(labels, 0))
    n = int(ids.max(initial=0))
    if n == 0:
        zeros = dict.fromkeys(("count", "diameter", "diameter_spread", "covered", "elongation", "touching"), 0)
        return {**zeros, "location": None, "locations": (), "contrast": None}
    area, centre, elongation = _moments(ids, n)
    low, median, high = np.percentile(2 * np.sqrt(area / np.pi) / np.sqrt(ids.size), (16, 50, 84))
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


def _moments(ids: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Area (n,) in pixels, centre (n, 2) as fractions of width and height, ratio of the principal axes (n,)."""
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
    """All keys of LOCATIONS that hold for centres (n, 2) in 0..1, the best one first."""
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
    """Fraction of the n instances that have a pixel of another among the eight around one of their own."""
    touches = np.zeros(n + 1, bool)
    for a, b in ((ids[1:], ids[:-1]), (ids[:, 1:], ids[:, :-1]), (ids[1:, 1:], ids[:-1, :-1]), (ids[1:, :-1], ids[:-1, 1:])):
        meet = (a != b) & (a > 0) & (b > 0)
        touches[a[meet]] = touches[b[meet]] = True
    return float(touches.sum() / n)


def caption(sample: Sample, rng: np.random.Generator) -> str:
    """Write two or three short sentences about one image, true to its metadata and masks.

    Args:
        sample: image, labels and meta; fields of meta that are missing give neutral words.
        rng: picks among a few wordings of the same facts.

    Returns:
        Text whose first sentence names modality, structure and specimen.
    """
    facts = measure(sample.image, sample.labels)
    structure = find_structure(sample.meta) or Structure("object", "objects", "", "")
    row, specimen = find_modality(sample.meta), find_specimen(sample.meta)
    modality = row.name if row else "microscopy"
    words = {"modality": modality, "a_modality": article(modality), "things": structure.many}
    words |= {f"{where}_specimen": f" {where} {specimen}" if specimen else "" for where in ("in", "of")}
    if facts["count"] == 0:
        sentences = ["{a_modality} image{of_specimen} with no {things}.", "only background is visible."]
    else:
        words |= _words(structure, facts)
        sentences = [_pick(WORDINGS["opening"], rng), _pick(WORDINGS["amounts"], rng)]
        detail = [_band("touches", facts["touching"])]
        if facts["count"] >= 3:
            detail.append(_band("spreads", facts["diameter_spread"]))
        ending = f"; {_pick(detail, rng)}." if facts["count"] > 1 else "."
        sentences.append(_pick(WORDINGS["arrangement"], rng) + ending)
    texts = [sentence.format(**words) for sentence in sentences]
    return " ".join(text[0].upper() + text[1:] for text in texts)


def _words(structure: Structure, facts: dict) -> dict[str, str]:
    """What stands for count, size, shape, contrast, location and cover in the wordings, and the verbs."""
    one = facts["count"] == 1
    amount = f"{count_band(facts['count'])} {_band('sizes', facts['diameter'])} {_band('shapes', facts['elongation'])}"
    return WORDINGS["one" if one else "many"] | {
        "things": article(structure.one) if one else structure.many,
        "objects": f"{amount} {structure.one if one else structure.many}",
        "contrast": CONTRASTS[facts["contrast"]],
        "location": LOCATIONS[facts["location"]],
        "part": _band("covers", facts["covered"]),
    }


def _band(table: str, value: float) -> str:
    return next(words for bound, words in BANDS[table] if value < bound)


def _pick(options: list[str], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def caption_claims(text: str) -> dict:
    """Read back what a caption, or a model's attempt at one, claims.

    Returns:
        modality: a name of MODALITIES; structure: a plural of STRUCTURES; count: words of COUNTS; location: a key of
        LOCATIONS; contrast: a key of CONTRASTS. None where the text makes no such claim.
    """
    # the most special modality that is named first
    wider = {row.wider for row in MODALITIES if row.wider and re.search(row.text, text)}
    modalities = {row.name: row.text for row in MODALITIES if row.name not in wider}
    # the structure that is named most often, the earlier one of equals
    plain = _ASIDE.sub(" ", text)
    named = {row.many: list(re.finditer(row.text, plain, re.IGNORECASE)) for row in STRUCTURES}
    structures = [many for many in named if named[many]]
    # the first count, in words or digits
    words = sorted((words for _, words in COUNTS), key=len, reverse=True)
    count = re.search(rf"(?i)\b(?:({'|'.join(words)})|(\d{{1,6}}))\b(?! ?%)", text)
    locations = {key: rf"(?i)\b{phrase.removesuffix(' over the view')}\b" for key, phrase in LOCATIONS.items()}
    tones = {key: rf"(?i)\b{phrase.removesuffix(' the background')}\b" for key, phrase in CONTRASTS.items()}
    return {
        "modality": _first(text, modalities),
        "structure": min(structures, key=lambda many: (-len(named[many]), named[many][0].start()), default=None),
        "count": count and (count[1].lower() if count[1] else count_band(int(count[2]))),
        "location": _first(text, locations),
        "contrast": _first(text, tones),
    }


def _first(text: str, patterns: dict[str, str]) -> str | None:
    """The key whose pattern occurs first in the text."""
    hits = {key: re.search(pattern, text) for key, pattern in patterns.items()}
    return min((key for key in hits if hits[key]), key=lambda key: hits[key].start(), default=None)


def check_claims(text: str, sample: Sample) -> dict[str, bool | None]:
    """Compare the claims of a caption, or of a model's attempt at one, with the ground truth of its image.

    A wider name ("electron microscopy" of a scanning electron micrograph), the special names that a plain "electron
    microscopy" leaves open, and each of several locations that hold are right.

    Returns:
        For each key of `caption_claims` whether the claim is right; None without such a claim, or where the truth
        cannot decide it, such as a modality where meta has none.
    """
    modality, structure, specimen = find_modality(sample.meta), find_structure(sample.meta), find_specimen(sample.meta)
    # words of the specimen's phrase claim nothing about the structures
    claims = caption_claims(re.sub(rf"(?i)(?<!\w){re.escape(specimen)}(?!\w)", " ", text) if specimen else text)
    facts = measure(sample.image, sample.labels)
    if structure not in STRUCTURES and names_structure(text, sample.meta):
        claims["structure"] = structure.many
    true = {"count": {count_band(facts["count"])}, "location": facts["locations"], "contrast": {facts["contrast"]}}
    if structure:
        true["structure"] = {structure.many}
    if modality:
        special = {row.name for row in MODALITIES if row.name.endswith(f" {modality.name}")}
        true["modality"] = special | {row.wider for row in MODALITIES if row.name == modality.name} | {modality.name}
    return {key: claim in true[key] if claim and key in true else None for key, claim in claims.items()}


def contradictions(text: str, sample: Sample) -> list[str]:
    """The claims of a caption that are wrong by `check_claims`, in its order."""
    return [key for key, right in check_claims(text, sample).items() if right is False]
