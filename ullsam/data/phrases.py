"""Short canonical phrases for modality, structure and specimen, read from the free text of a dataset's meta.

A meta is the dictionary of a meta.json or of a synthetic style; every field may be missing.
"""

import re
from dataclasses import dataclass

_SHOT = r"(?:microscop\w+|micrographs?|images?)"  # what follows the kind of microscopy


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
    Modality(
        "electron microscopy",
        rf"(?s)(?=.*(?:{_SCAN}))(?=.*(?:{_TRANS}))|(?i:scanning transmission)",
        rf"(?i:\belectron {_SHOT}\b)|\bEM\b|\bSEM\b|\bTEM\b",
    ),
    Modality("scanning electron microscopy", _SCAN, rf"(?i:\bscanning electron {_SHOT}\b)|\bSEM\b", "electron microscopy"),
    Modality(
        "transmission electron microscopy", _TRANS, rf"(?i:\btransmission electron {_SHOT}\b)|\bTEM\b", "electron microscopy"
    ),
    Modality("electron microscopy", r"(?i:electron micro)|\bEM\b", rf"(?i:\belectron {_SHOT}\b)|\bEM\b|\bSEM\b|\bTEM\b"),
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
