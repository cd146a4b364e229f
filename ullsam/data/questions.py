"""A small question set in MicroVQA's layout about synthetic images, with answers that are true by construction.

Tasks as in MicroVQA: 1 expert visual understanding (V), 2 hypothesis generation (H), 3 experiment proposal (E).
The questions have that shape, but not its difficulty: each answer follows from how the image was made.
Source: MicroVQA (Burgess et al. 2025) for the columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ullsam.data.captions import measure
from ullsam.data.corpus import Sample
from ullsam.data.phrases import find_modality, find_structure
from ullsam.data.synthetic import PICTURES, generate
from ullsam.errors import InputError

TASKS = {1: "perception", 2: "hypothesis_gen", 3: "experiment_proposal"}
MOST_CHOICES = 5


@dataclass(frozen=True)
class Question:
    """One row of MicroVQA, with the columns that scoring needs.

    choices has 2 to 5 texts, correct_index counts from 0, images_list holds k images, arrays (H, W[, C]) or PIL.
    """

    key_question: int | str
    key_image: int | str
    question: str
    choices: list[str]
    correct_index: int
    correct_answer: str
    images_list: list = field(compare=False, repr=False)
    task: int
    task_str: str


# Names that may be true of the same picture, or that nobody could tell apart: never choices beside one another.
CONFLICTS = (
    {"H&E histology", "brightfield microscopy"},
    {"nuclei", "cells"},
    {"bacteria", "cells"},
    {"nuclei", "lesions"},
    {"mitochondria", "neurite cross-sections", "axons"},
    {"mitochondria", "cells"},
    {"neurite cross-sections", "cells"},
    {"axons", "cells"},
)
# One light microscope can often do what the others do, so they are not choices beside one another either.
LIGHT = {"fluorescence microscopy", "phase-contrast microscopy", "brightfield microscopy", "H&E histology"}
INSTRUMENTS = {
    "fluorescence microscopy": "a fluorescence microscope",
    "phase-contrast microscopy": "a phase-contrast microscope",
    "brightfield microscopy": "a brightfield microscope",
    "H&E histology": "a slide scanner for H&E sections",
    "scanning electron microscopy": "a scanning electron microscope",
    "transmission electron microscopy": "a transmission electron microscope",
    "ultrasound": "an ultrasound scanner",
}
# (smallest value of the band, its words)
COUNTS = ((1, "one to three"), (4, "four to ten"), (11, "eleven to thirty"), (31, "more than thirty"))
SHARES = (
    (0.0, "less than a tenth"),
    (0.1, "a tenth to a third"),
    (1 / 3, "a third to two thirds"),
    (2 / 3, "more than two thirds"),
)
HALVES = ("the left half", "the right half", "the top half", "the bottom half", "no half holds that many")
CLEAR = 0.05  # a share nearer than this to the edge of a band gives no question
MOST, NOT_MOST = 0.7, 0.6  # shares of objects in a half that do and that do not make it the answer

Draft = tuple[str, list[str]]  # the question, and its choices with the true one first


def _modality(sample: Sample) -> str:
    return find_modality(sample.meta).name


def _structures(sample: Sample) -> str:
    return find_structure(sample.meta).many


def _beside(true: str, names: Sequence[str], conflicts: Sequence[set] = CONFLICTS) -> list[str]:
    """The names that are certainly wrong where `true` is right."""
    return [n for n in dict.fromkeys(names) if n != true and not any({n, true} <= group for group in conflicts)]


def _metas(name: Callable[[Sample], str]) -> list[str]:
    """What all synthetic styles are, by one of the functions above."""
    return [name(Sample(None, None, style.meta)) for style in PICTURES.values()]


def _others(bands: Sequence, true: str) -> list[str]:
    """The words of a table of bands, the true one first."""
    return [true, *(words for _, words in bands if words != true)]


def _in_band(value: float, bands: Sequence) -> str:
    return [words for smallest, words in bands if value >= smallest][-1]


def ask_modality(sample: Sample) -> Draft:
    """V: the imaging technique."""
    true = _modality(sample)
    return "Which technique made this picture?", [true, *_beside(true, _metas(_modality))]


def ask_structure(sample: Sample) -> Draft:
    """V: what the objects are."""
    true = _structures(sample)
    return "Which structures does this picture show?", [true, *_beside(true, _metas(_structures))]


def ask_count(sample: Sample) -> Draft:
    """V: the number of objects, in bands; objects cut by the edge count."""
    count = measure(sample.image, sample.labels)["count"]
    question = f"How many {_structures(sample)} are in this picture, whole or cut by its edge?"
    return question, _others(COUNTS, _in_band(count, COUNTS))


def ask_contrast(sample: Sample) -> Draft | None:
    """V: mean gray of the objects against the rest; None where the two are about equal."""
    contrast = measure(sample.image, sample.labels)["contrast"]
    if contrast == "similar":
        return None
    wrong = "darker" if contrast == "brighter" else "brighter"
    question = f"How bright are the {_structures(sample)} on average, compared with the rest of the picture?"
    return question, [f"clearly {contrast}", f"clearly {wrong}", "about as bright"]


def ask_half(sample: Sample) -> Draft | None:
    """H: the half of the picture that holds most objects; None where the answer is not clear."""
    labels, (h, w) = sample.labels, sample.labels.shape
    y, x = np.array([np.argwhere(labels == i).mean(0) for i in np.unique(labels[labels > 0])]).T + 0.5
    shares = [np.mean(half) for half in (x < w / 2, x > w / 2, y < h / 2, y > h / 2)]
    clear = [words for words, share in zip(HALVES, shares, strict=False) if share >= MOST]
    if len(clear) > 1 or any(NOT_MOST < share < MOST for share in shares):
        return None
    true = clear[0] if clear else HALVES[-1]
    question = f"Which half of the picture holds the centres of at least seven in ten of the {_structures(sample)}?"
    return question, [true, *(words for words in HALVES if words != true)]


def ask_largest(sample: Sample) -> Draft | None:
    """H: the share of the largest object in the area of all; None near the edge of a band."""
    areas = np.bincount(sample.labels[sample.labels > 0])
    share = areas.max() / areas.sum()
    if any(abs(share - edge) < CLEAR for edge, _ in SHARES[1:]):
        return None
    question = f"Which part of the area of all {_structures(sample)} belongs to the largest one?"
    return question, _others(SHARES, _in_band(share, SHARES))


def ask_instrument(sample: Sample) -> Draft:
    """E: the instrument for more pictures of this kind."""
    true = _modality(sample)
    wrong = _beside(true, _metas(_modality), (LIGHT,))
    question = "You need more pictures of exactly this kind. Which instrument do you book?"
    return question, [INSTRUMENTS[name] for name in (true, *wrong)]


def ask_measurement(sample: Sample) -> Draft:
    """E: the measurement that segmenting the objects allows."""
    true = _structures(sample)
    question = "The objects of this picture will be segmented one by one. Which table can that give?"
    return question, [f"the area of each of the {name}" for name in (true, *_beside(true, _metas(_structures)))]


def ask_more(first: Sample, second: Sample) -> Draft | None:
    """H: which of two pictures holds more objects; None where the counts are near."""
    counts = [measure(s.image, s.labels)["count"] for s in (first, second)]
    if max(counts) < 1.5 * min(counts) or max(counts) - min(counts) < 3:
        return None
    more, fewer = ("first", "second") if counts[0] > counts[1] else ("second", "first")
    choices = [f"the {more} picture", f"the {fewer} picture", "both hold the same number"]
    return "Two pictures are given. Which holds more objects?", choices


KINDS = {
    1: ((ask_modality, 1), (ask_structure, 1), (ask_count, 1), (ask_contrast, 1)),
    2: ((ask_half, 1), (ask_largest, 1), (ask_more, 2)),
    3: ((ask_instrument, 1), (ask_measurement, 1)),
}  # task -> (function, number of images it takes)


def synthetic_questions(count: int, seed: int = 0, size: int = 256) -> list[Question]:
    """Make questions about synthetic images whose answers are true by construction.

    The tasks 1, 2, 3 take turns, and so do the kinds of question within a task. Every question has its own images;
    `key_image` names them, joined by " + " where there are two.

    Args:
        count: number of questions, at least 1.
        seed: not negative; the same seed gives the same questions, and more of them begin with the fewer.
        size: side of the images in pixels.

    Raises:
        InputError: count is below 1, or seed is negative.
    """
    if count < 1 or seed < 0:
        raise InputError(f"count is {count} and seed {seed}; give a count of 1 or more and a seed of 0 or more.")
    return [_make(number, seed, size) for number in range(count)]


def _make(number: int, seed: int, size: int) -> Question:
    """Question `number` of a seed: draws images until one gives a clear answer."""
    rng = np.random.default_rng([seed, number])
    task = 1 + number % 3
    ask, images = KINDS[task][number // 3 % len(KINDS[task])]
    draft = None
    while draft is None:
        samples = [generate(str(rng.choice(list(PICTURES))), int(rng.integers(2**31)), size) for _ in range(images)]
        draft = ask(*samples)
    text, choices = draft
    chosen = [0, *(1 + rng.permutation(len(choices) - 1))][:MOST_CHOICES]
    order = rng.permutation(chosen)
    key = " + ".join(sample.name for sample in samples)
    return Question(
        number,
        key,
        text,
        [choices[i] for i in order],
        int(np.flatnonzero(order == 0)[0]),
        choices[0],
        [sample.image for sample in samples],
        task,
        TASKS[task],
    )
