"""Captions: truth on hand-made masks, phrases from metadata, and claims that read back what was written."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ullsam.data.captions import (
    COUNTS,
    article,
    caption,
    caption_claims,
    check_claims,
    contradictions,
    count_band,
    find_modality,
    find_specimen,
    find_structure,
    measure,
    names_modality,
    names_structure,
    plural,
)
from ullsam.data.corpus import Sample
from ullsam.data.synthetic import STYLES, generate
from ullsam.errors import InputError

SEM, TEM = "scanning electron microscopy (SEM)", "serial-section transmission electron microscopy (ssTEM)"
FLUORESCENCE = {
    "modality": "fluorescence microscopy (DNA stain)",
    "structure": "nucleus",
    "specimen": "U2OS human osteosarcoma cells treated with bioactive compounds",
}


def boxes(*corners, side=10, size=100, inside=200, outside=20, meta=None) -> Sample:
    """A sample with bright squares whose top left corners are given as (x, y)."""
    labels = np.zeros((size, size), np.int32)
    for i, (x, y) in enumerate(corners, 1):
        labels[y : y + side, x : x + side] = i
    image = np.where(labels > 0, inside, outside).astype(np.uint8)[..., None].repeat(3, -1)
    return Sample(image, labels, FLUORESCENCE if meta is None else meta, "boxes")


def wordings(sample: Sample, n: int = 30) -> list[str]:
    """Captions of one sample under many random states."""
    return [caption(sample, np.random.default_rng(seed)) for seed in range(n)]


def test_measure_of_three_squares_on_the_left():
    facts = measure(*_arrays(boxes((5, 5), (10, 45), (20, 80))))
    assert facts["count"] == 3
    assert facts["covered"] == pytest.approx(0.03)
    assert facts["diameter"] == pytest.approx(2 * np.sqrt(100 / np.pi) / 100)
    assert facts["diameter_spread"] == pytest.approx(0)
    assert facts["elongation"] == pytest.approx(1)
    assert facts["touching"] == 0
    assert facts["contrast"] == "brighter"
    assert facts["location"] == "left" and facts["locations"] == ("left",)


def _arrays(sample):
    return sample.image, sample.labels


def test_caption_of_three_squares_on_the_left_says_so():
    for text in wordings(boxes((5, 5), (10, 45), (20, 80))):
        words = text.lower()
        assert "three medium-sized round nuclei" in words
        assert "on the left" in words and "brighter than the background" in words
        assert "fluorescence microscopy" in words.split(".")[0] and "nuclei" in words.split(".")[0]
        assert "in a human cell culture" in words or "of a human cell culture" in words
        assert "very little of the image" in words


def test_caption_of_one_dark_object_is_singular():
    for text in wordings(boxes((45, 45), inside=10, outside=90)):
        assert "one medium-sized round nucleus" in text.lower() and "a nucleus" in text.lower()
        assert "in the centre" in text and "darker than the background" in text
        assert "nuclei" not in text and "touch" not in text


def test_caption_of_an_empty_mask_claims_nothing_is_there():
    for text in wordings(boxes()):
        assert "no nuclei" in text and "fluorescence microscopy" in text and "human cell culture" in text
        assert caption_claims(text)["count"] == "no"
        assert contradictions(text, boxes()) == []
        assert contradictions(text, boxes((5, 5))) == ["count"]


def test_places_on_an_empty_image_are_contradicted():
    claims = "Three nuclei on the left, brighter than it."
    assert contradictions(claims, boxes()) == ["count", "location", "contrast"]


@pytest.mark.parametrize(
    "corners, place",
    [
        ([(70, 10), (80, 50), (75, 80)], "right"),
        ([(5, 5), (45, 10), (85, 5)], "top"),
        ([(5, 85), (45, 80), (85, 85)], "bottom"),
        ([(40, 40), (52, 52), (40, 54)], "centre"),
        ([(5, 5), (5, 85), (85, 5), (85, 85)], "evenly spread"),
        ([(5, 5), (85, 85)], "scattered"),
        ([(45, 5)], "top"),
        ([(2, 30)], "left"),
    ],
)
def test_places(corners, place):
    assert measure(*_arrays(boxes(*corners)))["location"] == place


def test_both_sides_of_a_corner_are_true():
    sample = boxes((5, 15), (12, 30))
    assert set(measure(*_arrays(sample))["locations"]) == {"left", "top"}
    assert contradictions("Two nuclei on the left.", sample) == []
    assert contradictions("Two nuclei at the top.", sample) == []
    assert contradictions("Two nuclei on the right.", sample) == ["location"]


def test_touching_counts_neighbours_also_over_a_corner():
    assert measure(*_arrays(boxes((10, 10), (20, 20), (60, 60))))["touching"] == pytest.approx(2 / 3)
    assert measure(*_arrays(boxes((10, 10), (21, 10), (60, 60))))["touching"] == 0


def test_elongation_of_a_bar_is_its_side_ratio():
    labels = np.zeros((60, 60), np.int32)
    labels[10:14, 10:50] = 1
    assert measure(np.zeros((60, 60, 3), np.uint8), labels)["elongation"] == pytest.approx(10)


def test_equal_gray_is_similar_and_full_cover_has_no_background():
    assert measure(*_arrays(boxes((5, 5), inside=20)))["contrast"] == "similar"
    assert measure(np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), np.int32))["contrast"] == "similar"


def test_measure_ignores_which_ids_are_used():
    sample = boxes((5, 5), (30, 40), (70, 80))
    renamed = np.array([0, 7_000_000, 3, 900])[sample.labels]
    assert measure(sample.image, renamed) == measure(sample.image, sample.labels)


def test_measure_names_wrong_input():
    with pytest.raises(InputError, match="size"):
        measure(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9), np.int32))
    with pytest.raises(InputError, match="float"):
        measure(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32))


@pytest.mark.parametrize(
    "n, words",
    [
        (0, "no"),
        (1, "one"),
        (7, "seven"),
        (10, "ten"),
        (11, "about a dozen"),
        (14, "about a dozen"),
        (15, "about twenty"),
        (24, "about twenty"),
        (34, "about thirty"),
        (35, "about forty"),
        (64, "about fifty"),
        (94, "about eighty"),
        (95, "more than a hundred"),
        (5000, "more than a hundred"),
    ],
)
def test_count_bands(n, words):
    assert count_band(n) == words


def test_every_count_band_is_read_back():
    for _, words in COUNTS:
        assert caption_claims(f"There are {words} small nuclei.")["count"] == words
    assert caption_claims("There are 38 nuclei.")["count"] == "about forty"
    assert caption_claims("They cover about a tenth of the image.")["count"] is None


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(STYLES)), st.integers(0, 10_000), st.integers(0, 10_000))
def test_captions_of_synthetic_scenes_are_complete_and_true(style, seed, wording):
    sample = generate(style, seed, 96)
    text = caption(sample, np.random.default_rng(wording))
    assert text == caption(sample, np.random.default_rng(wording))
    first = text.split(". ")[0]
    assert names_modality(first, sample.meta) and names_structure(first, sample.meta)
    assert None not in caption_claims(text).values()
    assert contradictions(text, sample) == []
    assert 25 <= len(text.split()) <= 50 and text.endswith(".") and "  " not in text


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90)), max_size=30),
    st.integers(0, 255),
    st.sampled_from(
        [
            {},
            FLUORESCENCE,
            {"structure": "air bubble", "specimen": "three human cells"},
            {"modality": "atomic force microscopy (tapping)", "structure": "crystal"},
        ]
    ),
)
def test_captions_of_any_boxes_are_true(corners, inside, meta):
    sample = boxes(*corners, inside=inside, outside=100, meta=meta)
    for text in wordings(sample, 3):
        assert contradictions(text, sample) == []


def test_contradictions_name_each_false_claim():
    sample = boxes((5, 5), (10, 45), (20, 80))
    true = "A fluorescence microscopy image of nuclei. Three nuclei, brighter than the rest, on the left."
    assert contradictions(true, sample) == []
    for old, new, key in [
        ("fluorescence", "phase-contrast", "modality"),
        ("nuclei", "axons", "structure"),
        ("Three", "Four", "count"),
        ("left", "right", "location"),
        ("brighter", "darker", "contrast"),
    ]:
        assert contradictions(true.replace(old, new), sample) == [key]
    assert contradictions("Something blurred.", sample) == []


def test_wider_names_are_no_contradiction_and_wrong_kinds_are():
    sem = boxes((5, 5), meta={"modality": SEM})
    some_em = boxes((5, 5), meta={"modality": "electron microscopy"})
    assert contradictions("An electron microscopy image.", sem) == []
    assert contradictions("A transmission electron microscopy image.", sem) == ["modality"]
    assert contradictions("A transmission electron microscopy image.", some_em) == []
    assert contradictions("A fluorescence microscopy image.", some_em) == ["modality"]
    smear = boxes((5, 5), meta={"modality": "brightfield microscopy"})
    assert contradictions("An H&E histology image.", smear) == ["modality"]


# metadata of public datasets: modality, structure, specimen -> the three canonical phrases
PUBLIC = [
    (
        SEM,
        "axon (inside of the myelin sheath)",
        "rat cervical spinal cord white matter",
        "scanning electron microscopy",
        "axons",
        "rat spinal cord",
    ),
    (
        "fluorescence microscopy (Hoechst, DNA channel of a Cell Painting screen)",
        "nucleus",
        "U2OS human osteosarcoma cells treated with bioactive compounds",
        "fluorescence microscopy",
        "nuclei",
        "a human cell culture",
    ),
    (
        "brightfield microscopy (grayscale, stained smear)",
        "nucleus",
        "cells in a smear preparation with wide cytoplasm",
        "brightfield microscopy",
        "nuclei",
        "a cell smear",
    ),
    (
        "fluorescence microscopy (DNA stain)",
        "nucleus",
        "cultured cells and tissue of several types, incl. Drosophila embryo sections",
        "fluorescence microscopy",
        "nuclei",
        "cultured cells and tissue",
    ),
    (
        "electron microscopy (SEM/TEM micrographs collected from the literature)",
        "particle",
        "nanoparticles and other particulate materials (non-biological)",
        "electron microscopy",
        "particles",
        "a particulate material",
    ),
    (
        "phase-contrast microscopy (10x Ph1, 1.5x intermediate magnification)",
        "cell",
        "T98G human glioblastoma cells, adherent culture",
        "phase-contrast microscopy",
        "cells",
        "a human cell culture",
    ),
    (
        TEM,
        "mitochondrion",
        "Drosophila melanogaster third-instar larva ventral nerve cord",
        "transmission electron microscopy",
        "mitochondria",
        "insect nerve tissue",
    ),
    (
        TEM,
        "neurite cross-section (intracellular region)",
        "Drosophila melanogaster third-instar larva ventral nerve cord",
        "transmission electron microscopy",
        "neurite cross-sections",
        "insect nerve tissue",
    ),
    (
        "B-mode ultrasound",
        "breast lesion (benign or malignant)",
        "human female breast (25-75 y)",
        "ultrasound",
        "lesions",
        "human breast tissue",
    ),
    (
        "brightfield microscopy of stained tissue (H&E-like, purple on white or violet)",
        "nucleus",
        "stained tissue sections",
        "H&E histology",
        "nuclei",
        "a tissue section",
    ),
    (
        "brightfield microscopy, H&E stain, 20x (0.62 um/px)",
        "gland",
        "human colon (benign and colorectal adenocarcinoma)",
        "H&E histology",
        "glands",
        "human colon tissue",
    ),
    (
        SEM,
        "precipitate (secondary and tertiary gamma prime)",
        "nickel-based superalloy (material, non-biological)",
        "scanning electron microscopy",
        "precipitates",
        "a nickel superalloy",
    ),
]


@pytest.mark.parametrize("modality, structure, specimen, kind, things, place", PUBLIC)
def test_phrases_of_public_datasets(modality, structure, specimen, kind, things, place):
    meta = {"modality": modality, "structure": structure, "specimen": specimen}
    assert find_modality(meta).name == kind
    assert find_structure(meta).many == things
    assert find_specimen(meta) == place
    for text in wordings(boxes((5, 5), (10, 45), (20, 80), meta=meta), 8):
        assert kind in text.split(". ")[0] or kind in text[0].lower() + text[1:]
        assert names_modality(text, meta) and names_structure(text, meta)


def test_unknown_metadata_keeps_its_own_words():
    meta = {"modality": "atomic force microscopy (tapping mode)", "structure": "air bubble", "specimen": "polymer, thin"}
    for text in wordings(boxes((5, 5), (10, 45), meta=meta)):
        assert "tomic force microscopy" in text and "ir bubbles" in text and "polymer" in text
        assert names_modality(text, meta) and names_structure(text, meta)
    assert not names_modality("A force microscopy image.", meta) and not names_structure("Bubbles.", meta)


def test_empty_metadata_gives_neutral_words():
    for text in wordings(boxes((5, 5), (10, 45), meta={})):
        assert "icroscopy" in text and "objects" in text
        assert not names_modality(text, {}) and not names_structure(text, {})
    openings = {text.split(". ")[0] for text in wordings(boxes((5, 5), (9, 45), meta={}))}
    assert "A microscopy image of objects" in openings


@pytest.mark.parametrize(
    "modality, text, named",
    [
        (SEM, "A scanning electron microscopy image.", True),
        (SEM, "Seen by SEM.", True),
        (SEM, "A Scanning Electron Micrograph of ore.", True),
        (SEM, "An electron microscopy image.", False),
        (SEM, "A transmission electron microscopy image.", False),
        (TEM, "A TEM image.", True),
        (TEM, "it may seem so", False),
        ("electron microscopy (SEM/TEM)", "An electron micrograph.", True),
        ("fluorescence microscopy", "a fluorescent micrograph", True),
        ("fluorescence microscopy", "microscopy", False),
        ("phase-contrast microscopy", "Phase contrast image", True),
        ("phase-contrast microscopy", "low contrast", False),
        ("brightfield microscopy", "bright-field image", True),
        ("brightfield, H&E stain", "brightfield image", False),
        ("brightfield, H&E stain", "An H&E section", True),
        ("H&E", "haematoxylin and eosin", True),
        ("B-mode ultrasound", "an ultrasound image", True),
        ("B-mode ultrasound", "an X-ray image", False),
    ],
)
def test_names_modality(modality, text, named):
    assert names_modality(text, {"modality": modality}) is named


@pytest.mark.parametrize(
    "structure, text, named",
    [
        ("nucleus", "Many nuclei.", True),
        ("nucleus", "one Nucleus", True),
        ("nucleus", "nucleoli", False),
        ("nucleus", "cells", False),
        ("cell", "seven cells", True),
        ("cell", "cell nuclei", False),
        ("cell", "nuclei in a human cell culture", False),
        ("cell", "cells in a human cell culture", True),
        ("cell", "intracellular", False),
        ("mitochondrion", "dark mitochondria", True),
        ("neurite cross-section (intracellular region)", "neurites", True),
        ("axon", "axons", True),
        ("axon", "taxonomy", False),
        ("particle", "nanoparticles", True),
        ("particle", "a particulate material", False),
        ("gland", "crypts", True),
        ("breast lesion (benign)", "a tumour", True),
        ("precipitate", "particles", False),
        ("bacterium", "bacterial cells", True),
        ("cell", "bacterial cells", False),
    ],
)
def test_names_structure(structure, text, named):
    assert names_structure(text, {"structure": structure}) is named


@pytest.mark.parametrize(
    "phrase, expected",
    [
        ("ultrasound image", "an ultrasound image"),
        ("H&E histology", "an H&E histology"),
        ("unit", "a unit"),
        ("electron", "an electron"),
        ("scanning", "a scanning"),
        ("X-ray imaging", "an X-ray imaging"),
        ("HeLa", "a HeLa"),
    ],
)
def test_article(phrase, expected):
    assert article(phrase) == expected


@pytest.mark.parametrize(
    "one, many",
    [
        ("air bubble", "air bubbles"),
        ("nucleolus", "nucleoli"),
        ("ovum", "ova"),
        ("body", "bodies"),
        ("ray", "rays"),
        ("synapsis", "synapses"),
        ("branch", "branches"),
        ("cells", "cells"),
    ],
)
def test_plural(one, many):
    assert plural(one) == many


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Three nuclei on the left.", {"structure": True, "count": True, "location": True}),
        ("An ultrasound of 5 nuclei.", {"modality": False, "structure": True, "count": False}),
        ("Darker than the background.", {"contrast": False}),
        ("Nothing to say.", {}),
    ],
)
def test_check_claims(text, expected):
    claims = check_claims(text, boxes((5, 5), (10, 45), (20, 80)))
    assert {key: right for key, right in claims.items() if right is not None} == expected
    assert list(claims) == list(caption_claims(text))


def test_claims_that_the_truth_cannot_decide_are_neither_right_nor_wrong():
    claims = check_claims("Three nuclei by ultrasound.", boxes((5, 5), (10, 45), (20, 80), meta={}))
    assert (claims["modality"], claims["structure"], claims["count"]) == (None, None, True)
