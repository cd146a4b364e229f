"""Synthetic scenes: determinism, label rules of every style, and words that captions need."""

import cv2
import numpy as np
import pytest

from ullsam.data.synthetic import STYLES, generate
from ullsam.data.synthetic.parts import SMALLEST, depth, tidy
from ullsam.errors import InputError

every_style = pytest.mark.parametrize("style", STYLES)


@every_style
def test_same_arguments_give_the_same_bytes_and_others_do_not(style):
    first, again, other = generate(style, 3, 128), generate(style, 3, 128), generate(style, 4, 128)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert not np.array_equal(first.image, other.image)
    assert first.name == again.name != other.name


@every_style
@pytest.mark.parametrize("size", [64, 200, 256])
def test_labels_are_consecutive_connected_and_not_tiny(style, size):
    for seed in range(4):
        labels = generate(style, seed, size).labels
        ids = np.unique(labels)
        assert labels.dtype == np.int32 and labels.shape == (size, size)
        np.testing.assert_array_equal(ids[ids > 0], np.arange(1, labels.max() + 1))
        assert labels.max() >= 1 and (labels == 0).any()
        for i in range(1, labels.max() + 1):
            mask = (labels == i).astype(np.uint8)
            assert mask.sum() >= SMALLEST
            assert cv2.connectedComponents(mask, connectivity=4)[0] == 2


@every_style
def test_images_are_rgb8_with_contrast_and_instances_stay_countable(style):
    counts = []
    for seed in range(6):
        sample = generate(style, seed)
        assert sample.image.dtype == np.uint8 and sample.image.shape == (256, 256, 3)
        assert sample.image.std() > 2
        counts.append(int(sample.labels.max()))
    assert 1 <= min(counts) and max(counts) <= 80


@every_style
def test_meta_has_the_fields_of_a_dataset_and_is_a_copy(style):
    sample = generate(style, 0, 64)
    for key in ("name", "domain", "modality", "specimen", "structure", "description"):
        assert isinstance(sample.meta[key], str) and sample.meta[key]
    assert sample.meta["synthetic"] is True
    sample.meta["modality"] = "changed"
    assert STYLES[style].meta["modality"] != "changed"


def test_styles_cover_the_domains():
    domains = [style.meta["domain"] for style in STYLES.values()]
    assert domains.count("LM") >= 3 and domains.count("EM") >= 3
    assert "histopathology" in domains and "medical" in domains


@pytest.mark.parametrize(
    "style, sign",
    [
        ("fluorescence_nuclei", 1),
        ("sem_particles", 1),
        ("em_neurites", 1),
        ("em_mitochondria", -1),
        ("tem_particles", -1),
        ("brightfield_bacteria", -1),
        ("histology_nuclei", -1),
        ("ultrasound_lesion", -1),
    ],
)
def test_objects_are_brighter_or_darker_as_the_style_says(style, sign):
    gaps = []
    for seed in range(8):
        sample = generate(style, seed)
        gray = sample.image.mean(-1)
        gaps.append(gray[sample.labels > 0].mean() - gray[sample.labels == 0].mean())
    assert sign * np.median(gaps) > 0


def test_object_sizes_vary_from_small_to_more_than_a_quarter_of_the_view():
    diameters = []
    for style in STYLES:
        for seed in range(6):
            area = np.bincount(generate(style, seed).labels.ravel())[1:]
            diameters.append(float(np.median(2 * np.sqrt(area / np.pi))))
    assert min(diameters) < 15 and max(diameters) > 64


def test_no_global_random_state_is_read_or_changed():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = generate("em_neurites", 0, 64)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(2)
    np.testing.assert_array_equal(generate("em_neurites", 0, 64).image, first.image)


def test_tidy_keeps_the_largest_piece_and_numbers_what_is_left():
    labels = np.zeros((20, 20), np.int32)
    labels[0:4, 0:4] = 5  # 16 pixels
    labels[10:16, 10:16] = 5  # 36 pixels, the piece that stays
    labels[0:3, 10:13] = 7  # 9 pixels, too small
    labels[18, 0:12] = 9  # exactly 12 pixels
    expected = np.zeros_like(labels)
    expected[10:16, 10:16] = 1
    expected[18, 0:12] = 2
    np.testing.assert_array_equal(tidy(labels), expected)


def test_tidy_does_not_join_pieces_over_a_corner():
    labels = np.zeros((12, 12), np.int32)
    labels[0:4, 0:4] = labels[4:10, 4:10] = 1
    assert (tidy(labels) > 0).sum() == 36


def test_depth_is_zero_on_the_border_between_touching_objects():
    labels = np.ones((9, 18), np.int32)
    labels[:, 9:] = 2
    inner = depth(labels)
    assert (inner[:, 8:10] == 0).all() and inner[4, 4] > 2


@pytest.mark.parametrize(
    "style, seed, size, word", [("nebula", 0, 64, "nebula"), ("em_neurites", -1, 64, "seed"), ("em_neurites", 0, 32, "size")]
)
def test_bad_arguments_are_named(style, seed, size, word):
    with pytest.raises(InputError, match=word):
        generate(style, seed, size)


def test_drawings_hold_small_and_large_bodies_in_grey_and_in_colour():
    samples = [generate(style, seed) for style in ("shapes", "packed_shapes") for seed in range(12)]
    areas = np.concatenate([np.bincount(sample.labels.ravel())[1:] for sample in samples])
    assert areas.min() < 100 and areas.max() > 0.1 * 256**2
    coloured = [bool((sample.image[..., :1] != sample.image).any()) for sample in samples]
    assert 4 <= sum(coloured) <= 20
