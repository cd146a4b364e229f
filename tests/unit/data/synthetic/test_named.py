"""Synthetic scenes with names: true masks that fit one another, attributes that hold, and no convention in the picture."""

import numpy as np
import pytest

from ullsam.data.synthetic.named import AXES, KINDS, NOUNS, SPLITS, named_scene, synthetic_scenes, with_attributes
from ullsam.data.synthetic.parts import SMALLEST
from ullsam.errors import InputError

SCENES = synthetic_scenes(6 * len(KINDS), seed=2, size=128)
ATTRIBUTES = [name for pair in AXES.values() for name in pair]


def of(kind):
    return [scene for scene in SCENES if scene.source == kind]


def with_key(key):
    found = [scene for scene in SCENES if key in scene.structures]
    assert found, f"no scene has {key}"
    return found


def instances(labels):
    return [labels == i for i in np.unique(labels[labels > 0])]


def length_to_width(mask):
    spread = np.linalg.eigvalsh(np.cov(np.argwhere(mask).T))
    return float(np.sqrt(spread[1] / spread[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_are_images_with_instances_and_none_of_what_is_absent(kind):
    for scene in of(kind):
        assert scene.image.dtype == np.uint8 and scene.image.shape == (128, 128, 3) and scene.image.std() > 2
        assert not set(scene.absent) & set(scene.structures) and len(scene.absent) >= 4
        assert scene.name.startswith(f"synthetic/{kind}/") and scene.split == "train"
        for labels in scene.structures.values():
            assert labels.dtype == np.int32 and labels.shape == (128, 128) and labels.min() == 0
            assert min(mask.sum() for mask in instances(labels)) >= SMALLEST


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [64, 200])
def test_a_scene_is_a_function_of_its_number_and_size(kind, size):
    first, again, other = (named_scene(kind, number, size, "train") for number in (3, 3, 6))
    np.testing.assert_array_equal(first.image, again.image)
    for key, labels in first.structures.items():
        np.testing.assert_array_equal(labels, again.structures[key])
    assert first.name == again.name != other.name and not np.array_equal(first.image, other.image)


def test_splits_and_seeds_share_no_scene():
    names = [s.name for split in SPLITS for seed in (0, 1) for s in synthetic_scenes(20, seed, 64, split)]
    assert len(set(names)) == len(names) == 120
    numbers = {split: {int(s.name.split("/")[-1]) % 3 for s in synthetic_scenes(20, 9, 64, split)} for split in SPLITS}
    assert numbers == {"train": {0}, "val": {1}, "test": {2}}


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        ("nucleus", "cell"),
        ("cytoplasm", "cell"),
        ("mitochondrion", "neurite"),
        ("myelinated axon", "axon"),
        ("unmyelinated axon", "axon"),
        ("myelinated axon", "myelinated fibre"),
        ("myelin", "myelinated fibre"),
        ("soma", "neuron"),
        ("dendrite", "neuron"),
        ("satellite", "particle"),
    ],
)
def test_what_is_nested_lies_in_one_object(inner, outer):
    for scene in with_key(inner):
        if outer in scene.structures and not (inner, outer) == ("cell", "colony"):
            around = scene.structures[outer]
            assert all(
                len(np.unique(around[mask])) == 1 and around[mask].all() for mask in instances(scene.structures[inner])
            )


@pytest.mark.parametrize(
    ("whole", "parts"),
    [
        ("cell", ("nucleus", "cytoplasm")),
        ("myelinated fibre", ("myelinated axon", "myelin")),
        ("axon", ("myelinated axon", "unmyelinated axon")),
        ("neuron", ("soma", "dendrite")),
    ],
)
def test_parts_make_the_whole_and_do_not_overlap(whole, parts):
    for scene in with_key(parts[1]):
        a, b = (scene.structures[part] > 0 for part in parts)
        np.testing.assert_array_equal(a | b, scene.structures[whole] > 0)
        assert not (a & b).any()


def test_colonies_hold_three_cells_or_more_and_other_cells_lie_alone():
    lonely = 0
    for scene in of("colonies"):
        cells, colonies = scene.structures["cell"], scene.structures["colony"]
        assert all(len(np.unique(cells[mask & (cells > 0)])) >= 3 for mask in instances(colonies))
        homes = [np.unique(colonies[mask]) for mask in instances(cells)]
        assert all(len(home) == 1 for home in homes)
        lonely += sum(home[0] == 0 for home in homes)
    assert lonely > 0


def measures(scene, key):
    """What tells the attributes of a key apart: median grey, mean diameter, ratio of axes and place of its objects."""
    grey, masks = scene.image.mean(-1), instances(scene.structures[key])
    return {
        "brightness": float(np.median(grey[scene.structures[key] > 0])),
        "size": float(np.mean([np.sqrt(mask.sum()) for mask in masks])),
        "shape": -float(np.mean([length_to_width(mask) for mask in masks])),
        "side": -float(np.mean([np.argwhere(mask)[:, 1].mean() for mask in masks])),
    }


# the first attribute of an axis has the larger value, by so much
GAP = {"brightness": 8, "size": 3, "shape": 0.8, "side": 20}


@pytest.mark.parametrize("axis", AXES)
def test_attributes_are_true_and_split_the_objects_of_a_scene(axis):
    scenes = [named_scene(axis, number, 256, "train") for number in range(0, 24, 3)]
    for scene in scenes:
        noun = next(name for name in NOUNS if f"{AXES[axis][0]} {name}" in scene.structures)
        first, second = (f"{name} {noun}" for name in AXES[axis])
        both = scene.structures[first] + scene.structures[second]
        np.testing.assert_array_equal(both, scene.structures[noun])
        assert measures(scene, first)[axis] - measures(scene, second)[axis] > GAP[axis]
    assert len({frozenset(scene.structures) for scene in scenes}) > 1  # different nouns


@pytest.mark.parametrize(
    ("kind", "inner", "outer"),
    [("nested", "nucleus", "cytoplasm"), ("axons", "axon", "myelin"), ("powder", "satellite", "particle")],
)
def test_brightness_follows_no_convention(kind, inner, outer):
    brighter = []
    for number in range(0, 120, 3):
        scene = named_scene(kind, number, 64, "train")
        grey, maps = scene.image.mean(-1), scene.structures
        brighter.append(grey[maps[inner] > 0].mean() > grey[(maps[outer] > 0) & (maps[inner] == 0)].mean())
    assert 0.2 < np.mean(brighter) < 0.8


def test_mitochondria_are_darker_than_their_neurites():
    for scene in of("neuropil"):
        grey, inside = scene.image.mean(-1), scene.structures["mitochondrion"] > 0
        assert grey[inside].mean() < grey[(scene.structures["neurite"] > 0) & ~inside].mean()


def test_scenes_come_in_grey_and_in_colour():
    coloured = [bool((scene.image[..., :1] != scene.image).any()) for scene in of("nested") + of("colonies")]
    assert 0 < sum(coloured) < len(coloured)


def test_an_absent_noun_takes_its_attributes_along():
    found = with_attributes(["myelin", "particle"])
    assert found[:2] == ("myelin", "particle") and set(found[2:]) == {f"{name} particle" for name in ATTRIBUTES}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1, 0, 256, "all"), "split is 'all'; use one of train, val, test"),
        ((-1, 0, 256, "train"), "count is -1"),
        ((1, -1, 256, "train"), "seed -1"),
        ((1, 0, 32, "train"), "size 32; give .* a size of 64 or more"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(InputError, match=words):
        synthetic_scenes(*arguments)
