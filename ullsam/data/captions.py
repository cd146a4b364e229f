"""Captions that are true by construction: words from metadata, numbers measured on the instance masks.

A caption has two or three sentences: what kind of image it is; how many objects of what size, shape and
contrast; where they lie. All bands are in the tables below; `caption_claims` reads them back out of a text.
Modality, structure and specimen are short canonical phrases, found in the free text of a dataset's meta, the dictionary
of a meta.json or of a synthetic style; every field of it may be missing.
"""

import re
from dataclasses import dataclass

import cv2
import numpy as np

from ullsam.data.corpus import Sample
from ullsam.data.io import renumbered
from ullsam.errors import InputError

# ---------------------------------------------------------------- phrases for modality, structure and specimen


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


_SHOT = r"(?:microscop\w+|micrographs?|images?)"  # what follows the kind of microscopy
_EM = rf"(?i:\belectron {_SHOT}\b)|\bEM\b|\bSEM\b|\bTEM\b"
_SCAN, _TRANS = r"(?i:scanning.electron)|\bSEM\b|\bFIB-?SEM\b", r"(?i:transmission.electron)|\b(?:ss)?TEM\b"
# The first row whose `meta` pattern matches wins: special before general.
MODALITIES = (
    Modality("ultrasound", r"(?i)ultraso", r"(?i)\bultraso\w+|\bsonogra\w+"),
    Modality(
        "H&E histology",
        r"(?i)h&e\b|ha?ematoxylin|histo|stained tissue",
        r"(?i)\bH&E\b|\bha?ematoxylin\b|\bhisto(?:log|path)\w+",
        "brightfield microscopy",
    ),
    Modality("fluorescence microscopy", r"(?i)fluoresc", r"(?i)\bfluorescen\w+"),
    Modality("phase-contrast microscopy", r"(?i)phase.contrast", r"(?i)\bphase[- ]contrast\b"),
    Modality(
        "differential interference contrast microscopy",
        r"(?i:interference contrast)|\bDIC\b",
        r"(?i:\binterference contrast\b)|\bDIC\b",
    ),
    Modality("brightfield microscopy", r"(?i)bright.?field", r"(?i)\bbright[- ]?field\b"),
    Modality("electron microscopy", rf"(?s)(?=.*(?:{_SCAN}))(?=.*(?:{_TRANS}))|(?i:scanning transmission)", _EM),
    Modality("scanning electron microscopy", _SCAN, rf"(?i:\bscanning electron {_SHOT}\b)|\bSEM\b", "electron microscopy"),
    Modality(
        "transmission electron microscopy", _TRANS, rf"(?i:\btransmission electron {_SHOT}\b)|\bTEM\b", "electron microscopy"
    ),
    Modality("electron microscopy", r"(?i:electron micro)|\bEM\b", _EM),
    Modality("computed tomography", r"(?i:computed tomo)|\bCT\b", r"(?i:\bcomputed tomography\b)|\bCT\b"),
    Modality("magnetic resonance imaging", r"(?i:magnetic reson)|\bMRI?\b", r"(?i:\bmagnetic resonance\b)|\bMRI?\b"),
    Modality("X-ray imaging", r"(?i)x-?ray|radiogra", r"(?i)\bx-?rays?\b|\bradiogra\w+"),
    Modality("endoscopy", r"(?i)endoscop|colonoscop", r"(?i)\bendoscop\w+|\bcolonoscop\w+"),
    Modality("dermoscopy", r"(?i)dermoscop|dermatoscop", r"(?i)\bderm(?:at)?oscop\w+"),
    Modality("fundus photography", r"(?i)fundus", r"(?i)\bfundus\b"),
    Modality("computer drawing", r"(?i)computer drawing", r"(?i)\bcomputer drawing\b"),
)
STRUCTURES = (
    Structure("nucleus", "nuclei", r"nucle(us|i\b)", r"\bnucle(?:us|i)\b"),
    Structure("mitochondrion", "mitochondria", r"mitochondri", r"\bmitochondri(?:on|a)\b"),
    Structure(
        "neurite cross-section",
        "neurite cross-sections",
        r"neurit|neuronal process",
        r"\bneurites?\b|\bneuronal processes\b",
    ),
    Structure("axon", "axons", r"\baxon", r"\baxons?\b"),
    Structure("precipitate", "precipitates", r"precipitate", r"\bprecipitates?\b"),
    Structure("particle", "particles", r"particle", r"\b(?:nano)?particles?\b"),
    Structure("gland", "glands", r"\bgland|crypt", r"\bglands?\b|\bcrypts?\b"),
    Structure("lesion", "lesions", r"lesion|tumou?r", r"\blesions?\b|\btumou?rs?\b"),
    Structure("bacterium", "bacteria", r"bacteri", r"\bbacteri(?:um|a)\b|\bbacterial cells?\b"),
    Structure("vessel", "vessels", r"\bvessel", r"\b(?:blood )?vessels?\b"),
    Structure("drawn body", "drawn bodies", r"drawn bod", r"\bdrawn bod(?:y|ies)\b"),
    Structure("polyp", "polyps", r"polyp", r"\bpolyps?\b"),
    Structure("cell", "cells", r"\bcells?\b", r"(?<!bacterial )\bcells?\b(?!\s+(?:nucle|culture|smear|membrane|wall|bod))"),
)
# pattern in the specimen's free text -> short phrase that follows "in"
SPECIMENS = (
    (r"smear", "a cell smear"),
    (r"bacteri", "a bacterial culture"),
    (r"(?=.*cultured cells)(?=.*tissue)", "cultured cells and tissue"),
    (r"(?=.*human)(?=.*(?:cultur|U2OS|HeLa|HEK))", "a human cell culture"),
    (r"cell culture|cultured cells", "a cell culture"),
    (r"\brat\b.*spinal cord", "rat spinal cord"),
    (r"white matter", "white matter"),
    (r"(?:drosophila|insect).*(?:nerve|brain)", "insect nerve tissue"),
    (r"nerve tissue|brain|nervous", "nerve tissue"),
    (r"nickel.*superalloy", "a nickel superalloy"),
    (r"particulate|particles", "a particulate material"),
    (r"human.*breast", "human breast tissue"),
    (r"human.*colon\b", "human colon tissue"),
    (r"tissue section|stained tissue", "a tissue section"),
    (r"soft tissue", "soft tissue"),
)
_SPECIMEN_TEXT = "|".join(re.escape(phrase) for _, phrase in SPECIMENS)
_ASIDE = re.compile(rf"(?i)\bin (?:{_SPECIMEN_TEXT})\b|\bof (?:{_SPECIMEN_TEXT})(?= showing| with no)")


def _field(meta: dict, key: str) -> str:
    return str(meta.get(key) or "").strip()


def _own_words(text: str) -> str:
    """The free text without brackets and what follows a comma or semicolon."""
    return re.split(r"[,;]", re.sub(r"\s*[(\[].*?[)\]]", "", text))[0].strip()


def find_modality(meta: dict) -> Modality | None:
    """The row of MODALITIES of meta's modality; other words make a row of their own, no words None."""
    text = _field(meta, "modality")
    known = next((row for row in MODALITIES if re.search(row.meta, text)), None)
    own = _own_words(text)
    return known or (Modality(own, "", rf"(?i)(?<!\w){re.escape(own)}(?!\w)") if own else None)


def find_structure(meta: dict) -> Structure | None:
    """The row of STRUCTURES of meta's structure; other words make a row of their own, no words None."""
    text = _field(meta, "structure")
    known = next((row for row in STRUCTURES if re.search(row.meta, text, re.IGNORECASE)), None)
    own = _own_words(text).lower()
    if known or not own:
        return known
    return Structure(own, plural(own), "", rf"(?<!\w)(?:{re.escape(own)}|{re.escape(plural(own))})(?!\w)")


def find_specimen(meta: dict) -> str:
    """A short phrase that follows "in", from the table or meta's own words, "" without any."""
    text = _field(meta, "specimen")
    known = next((phrase for pattern, phrase in SPECIMENS if re.search(pattern, text, re.IGNORECASE)), None)
    return known or _own_words(text)


def plural(noun: str) -> str:
    """The plural of a noun by the regular rules and the Latin -us, -um and -is."""
    irregular = (("us", "i"), ("um", "a"), ("sis", "ses"), ("ch", "ches"), ("sh", "shes"), ("x", "xes"))
    for ending, many in irregular:
        if noun.endswith(ending):
            return noun[: -len(ending)] + many
    if noun.endswith("s"):
        return noun
    return noun[:-1] + "ies" if re.search(r"[^aeiou]y$", noun) else noun + "s"


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it, by the sound of its first letter."""
    vowel = re.match(r"(?i)[aeio]|u(?!ni|se|ti)|(?-i:[FHLMNRSX](?=&|-|[A-Z]))", phrase)
    return f"{'an' if vowel else 'a'} {phrase}"


def without_specimen(text: str) -> str:
    """The text without the known phrases for where the structures are, such as "in a human cell culture"."""
    return _ASIDE.sub(" ", text)


def names_modality(text: str, meta: dict) -> bool:
    """Whether a text names the modality of meta, by its phrase or a close synonym.

    A wider name does not count: "electron microscopy" does not name scanning electron microscopy.

    Args:
        text: any words, such as a caption or an answer.
        meta: its modality is read; without one nothing can be named and the answer is False.
    """
    row = find_modality(meta)
    return bool(row and re.search(row.text, text))


def names_structure(text: str, meta: dict) -> bool:
    """Whether a text names the structure of meta, singular or plural or by a close synonym.

    Words of a known specimen phrase do not count: "nuclei in a human cell culture" names nuclei, not cells.

    Args:
        text: any words, such as a caption or an answer.
        meta: its structure is read; without one nothing can be named and the answer is False.
    """
    row = find_structure(meta)
    return bool(row and re.search(row.text, without_specimen(text), re.IGNORECASE))


# ---------------------------------------------------------------- bands: a number and its words

# (smallest count of the band, its words); exact up to ten
COUNTS = (
    *enumerate(("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")),
    (11, "about a dozen"),
    (15, "about twenty"),
    (25, "about thirty"),
    (35, "about forty"),
    (45, "about fifty"),
    (65, "about eighty"),
    (95, "more than a hundred"),
)
# (upper bound, words) of the median equivalent diameter over the image side, the median axis ratio, the fraction
# of the image covered, the fraction of objects that touch another, and the spread of diameters
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
LOCATIONS = {
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
SIDED = 0.85  # the fraction of objects on one side, or in the centre, that makes it the location
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
        (84th - 16th percentile) / median of the diameters of circles of equal area; covered: fraction of the
        image; location: the best key of LOCATIONS, and locations: all keys that are true; contrast: a key of
        CONTRASTS; elongation: median ratio of the principal axes; touching: fraction of instances that touch
        another.
        Without instances location and contrast are None.

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


# ---------------------------------------------------------------- writing


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
    sentences = [_opening(sample.meta, structure, facts["count"], rng)]
    if facts["count"] == 0:
        sentences.append("only background is visible.")
    else:
        sentences += [_amounts(structure, facts, rng), _arrangement(facts, rng)]
    return " ".join(text[0].upper() + text[1:] for text in sentences)


def _pick(options: list[str], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def _opening(meta: dict, structure: Structure, count: int, rng: np.random.Generator) -> str:
    """The first sentence: modality, structure and specimen."""
    row, specimen = find_modality(meta), find_specimen(meta)
    modality = row.name if row else "microscopy"
    things, where = structure.many, f" in {specimen}" if specimen else ""
    if count == 0:
        return f"{article(modality)} image{f' of {specimen}' if specimen else ''} with no {things}."
    if count == 1:
        things = article(structure.one)
    options = [
        f"{article(modality)} image of {things}{where}.",
        f"this is {article(modality)} image of {things}{where}.",
        f"this {modality} image shows {things}{where}.",
        f"{things}{where}, seen by {modality}.",
        f"{modality} of {specimen} showing {things}." if specimen else f"{modality} showing {things}.",
    ]
    return _pick(options, rng)


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
    return _pick(options, rng)


def _arrangement(facts: dict, rng: np.random.Generator) -> str:
    """The third sentence: where, how much of the image, and either touching or the spread of sizes."""
    where, cover = LOCATIONS[facts["location"]], _band(facts["covered"], COVERS)
    one = facts["count"] == 1
    they, be, lie, fill = ("it", "is", "lies", "covers") if one else ("they", "are", "lie", "cover")
    options = [
        f"{they} {be} {where} and {fill} {cover} of the image",
        f"{they} {lie} {where}, covering {cover} of the image",
        f"{they} {fill} {cover} of the image and {be} {where}",
    ]
    detail = [_band(facts["touching"], TOUCHES)]
    if facts["count"] >= 3:
        detail.append(_band(facts["diameter_spread"], SPREADS))
    ending = "" if one else f"; {_pick(detail, rng)}"
    return f"{_pick(options, rng)}{ending}."


# ---------------------------------------------------------------- reading back


def caption_claims(text: str) -> dict:
    """Read back what a caption claims.

    Args:
        text: a caption of `caption`, or a model's attempt at one.

    Returns:
        modality: a name of MODALITIES; structure: a plural of STRUCTURES; count: words of COUNTS; location: a
        key of LOCATIONS; contrast: a key of CONTRASTS. None where the text makes no such claim.
    """
    # the most special modality that is named first
    wider = {row.wider for row in MODALITIES if row.wider and re.search(row.text, text)}
    modalities = {row.name: row.text for row in MODALITIES if row.name not in wider}
    # the structure that is named most often, the earlier one of equals
    plain = without_specimen(text)
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
