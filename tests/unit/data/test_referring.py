"""Segmentation by words: the vocabulary, scenes of data sets that share images, ambiguous clicks and requests."""

import itertools
import json

import cv2
import numpy as np
import pytest

from ullsam.data.io import write_labels
from ullsam.data.referring import (
    STRUCTURES,
    TABLES,
    NamedScene,
    ambiguous,
    draw_absent,
    draw_ambiguous,
    draw_union,
    keys,
    nearest_phrases,
    phrases,
    real_scenes,
    synthetic_scenes,
)
from ullsam.data.synthetic.named import ABSENT, AXES, KINDS, NOUNS
from ullsam.errors import InputError

SCENES = synthetic_scenes(3 * len(KINDS), seed=4, size=128)
HELD_OUT = pytest.mark.parametrize("held_out", [False, True])


def plain(phrase):
    """A phrase in small letters without plural s."""
    return " ".join(word.removesuffix("s") for word in phrase.lower().split())


# ---------------------------------------------------------------- vocabulary


def test_every_key_has_dozens_of_phrases_and_some_held_out():
    assert all(30 <= len(phrases(key)) <= 80 for key in keys())
    assert all(8 <= len(phrases(key, held_out=True)) <= 12 for key in keys(held_out=True))
    assert set(keys(held_out=True)) - set(keys()) == set(TABLES["composed"]["keys"])


def test_no_phrase_stands_twice_and_none_is_both_trained_and_held_out():
    lists = [(key, held_out, phrases(key, held_out)) for key in keys(held_out=True) for held_out in (False, True)]
    owners = {}
    for key, held_out, texts in lists:
        assert len(texts) == len(set(texts))
        for text in texts:
            assert owners.setdefault(plain(text), (key, held_out)) == (key, held_out), text


def test_phrases_read_well_after_segment_the():
    for text in itertools.chain(*(phrases(key, held_out) for key in keys(True) for held_out in (False, True))):
        assert text == " ".join(text.split()) and not text.startswith(("the ", "a ", "an "))
        assert not set("(){}|") & set(text)


def test_attributes_and_nouns_are_those_of_the_synthetic_scenes():
    names = [name for pair in AXES.values() for name in pair]
    assert set(keys(True)) == set(STRUCTURES) | {f"{name} {noun}" for name in names for noun in NOUNS}
    composed = [key.split() for key in TABLES["composed"]["keys"]]
    trained = [key.split() for key in keys() if key not in STRUCTURES]
    for attribute, noun in composed:  # each is trained, but not the two together
        assert attribute in {a for a, _ in trained} and noun in {n for _, n in trained}


def test_what_may_be_absent_and_what_data_sets_hold_is_in_the_vocabulary():
    named = [key for _, key in TABLES["sets"]["structures"]]
    named += [key for _, absent in (*TABLES["sets"]["absent"], *ABSENT) for key in absent]
    assert set(named) <= set(STRUCTURES)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("mitos", "mitochondrion"),
        ("dark oval organelle", "mitochondrion"),
        ("power plant of the cell", "mitochondrion"),
        ("nerve fibre profile", "neurite"),
        ("neuronal process", "neurite"),
        ("whole process around the point", "neurite"),
        ("cell body of a neuron", "soma"),
        ("nuclear region", "nucleus"),
        ("cellular region", "cell"),
        ("cell minus the nucleus", "cytoplasm"),
        ("inside of the myelin sheath", "myelinated axon"),
        ("axon with its myelin sheath", "myelinated fibre"),
        ("myelin without the axon", "myelin"),
        ("unmyelinated nerve fibre", "unmyelinated axon"),
        ("group of touching cells", "colony"),
        ("small particle stuck to a larger particle", "satellite"),
        ("nuclei that are dark", "dark nucleus"),
        ("cells in the left half", "left cell"),
    ],
)
def test_near_confusions_are_trained(text, key):
    assert [other for other in keys() if text in phrases(other)] == [key]


@pytest.mark.parametrize(
    ("parts", "has", "has_not"),
    [
        (("train",), "cell nuclei", "round body inside the cell"),
        (("train", "described"), "round body inside the cell", "nucleus at the point"),
        (("click",), "nucleus at the point", "cell nuclei"),
    ],
)
def test_lists_of_phrases(parts, has, has_not):
    some = phrases("nucleus", parts=parts)
    assert has in some and has_not not in some and set(some) < set(phrases("nucleus"))


def test_an_unknown_key_is_named():
    with pytest.raises(InputError, match="there is no structure 'ribosome' in the vocabulary; use one of mitochondrion, "):
        phrases("ribosome")


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("mitocondria", "mitochondria"),
        ("The Nucleii", "nuclei"),
        ("every myelinatd axon", "myelinated axon"),
        ("satelite", "satellite"),
        ("", None),
        ("细胞核", None),
        ("x" * 10_000, None),
    ],
)
def test_nearest_phrases(text, first):
    found = nearest_phrases(text)
    assert found[:1] == ([first] if first else []) and len(found) <= 3
    assert len(nearest_phrases(text, 1)) == bool(first)


# ---------------------------------------------------------------- data sets on the disk

INSIDE = np.zeros((12, 16), np.int32)
INSIDE[4:8, 4:8], INSIDE[4:8, 12:14] = 1, 2
RING = np.zeros((12, 16), np.int32)
RING[2:10, 2:10] = 1
RING[INSIDE > 0] = 0
BARE = np.zeros((12, 16), np.int32)
BARE[10:12, 0:4] = 1


def make(root, name, structure, labels=INSIDE, rows=(("a.png", "animal 1", "train"),), side=None, **meta):
    """A data set in root/in_domain whose images all have these labels."""
    folder = root / "in_domain" / name
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    labels = labels if side is None else np.ones((side, side), np.int32)
    for file, _, _ in rows:
        cv2.imwrite(str(folder / "images" / file), np.full(labels.shape, 90, np.uint8))
        write_labels(folder / "masks" / file, labels)
    table = ["file,source_id,split", *(",".join(row) for row in rows)]
    (folder / "images.csv").write_text("\n".join(table) + "\n")
    (folder / "meta.json").write_text(json.dumps({"name": name, "structure": structure, **meta}))


def test_partners_become_one_scene(tmp_path):
    make(tmp_path, "axons", "myelinated axon", INSIDE, paired_with=["rings"])
    make(tmp_path, "rings", "myelin sheath (ring)", RING, paired_with=["axons"])
    make(tmp_path, "bare", "unmyelinated axon", BARE, paired_with=["axons"])
    (scene,) = real_scenes(tmp_path, "train", names=["bare"])  # which leads to the others
    assert (scene.name, scene.source, scene.split) == ("bare/a.png", "animal 1", "train")
    assert scene.image.shape == (12, 16, 3) and scene.image.dtype == np.uint8 and (scene.image == 90).all()
    fibre = np.where((INSIDE == 1) | (RING == 1), 1, 0)  # axon 2 has no ring
    axon = np.where(BARE > 0, 3, INSIDE)
    expected = {"unmyelinated axon": BARE, "myelinated axon": INSIDE, "myelin": RING}
    expected |= {"axon": axon, "myelinated fibre": fibre}
    assert set(scene.structures) == set(expected)
    for key, labels in expected.items():
        assert scene.structures[key].dtype == np.int32
        np.testing.assert_array_equal(scene.structures[key], labels)


def test_data_sets_without_partners_are_scenes_of_one_structure(tmp_path):
    rows = [(f"{i}.png", f"well {i}", split) for i, split in enumerate(("train", "train", "train", "val", "test"))]
    powder = {"modality": "scanning electron microscopy", "specimen": "metal powder"}
    make(tmp_path, "powder", "powder particle", rows=rows, **powder)
    make(tmp_path, "glands", "gland")
    scenes = real_scenes(tmp_path, "train")
    assert [scene.name for scene in scenes] == ["powder/0.png", "powder/1.png", "powder/2.png"]  # no words for glands
    assert all(set(scene.structures) == {"particle"} for scene in scenes)
    assert {"nucleus", "mitochondrion", "bright nucleus"} <= set(scenes[0].absent)
    assert not {"particle", "satellite", "cell"} & set(scenes[0].absent)
    assert [s.name for s in real_scenes(tmp_path, "train", limit=1)] == ["powder/1.png"]
    sources = [{s.source for s in real_scenes(tmp_path, split)} for split in ("train", "val", "test")]
    assert not set.intersection(*sources) and [len(s) for s in sources] == [3, 1, 1]
    assert not ambiguous(scenes[0]) and draw_ambiguous(scenes[0], np.random.default_rng(0)) is None


def test_an_image_that_one_partner_lacks_keeps_what_is_known(tmp_path):
    both, one = ("a.png", "z0", "train"), ("b.png", "z1", "train")
    make(tmp_path, "m", "mitochondrion", rows=[both], paired_with=["n"])
    make(tmp_path, "n", "neurite cross-section", RING, rows=[both, one])
    found = {scene.name: set(scene.structures) for scene in real_scenes(tmp_path, "train")}
    assert found == {"m/a.png": {"mitochondrion", "neurite"}, "m/b.png": {"neurite"}}


def test_images_without_objects_are_passed_over(tmp_path):
    make(tmp_path, "a", "nucleus", np.zeros((12, 16), np.int32))
    assert real_scenes(tmp_path, "train") == []


@pytest.mark.parametrize(
    ("partner", "words"),
    [
        (None, r"m/meta.json names the partner n, which .*in_domain does not hold; add that data set or take its name out"),
        ({"side": 9}, r"n/images/a.png has 9 x 9 pixels but .*m/images/a.png has 16 x 12; give partners the same images"),
        (
            {"rows": [("a.png", "z0", "test")]},
            r"n/images.csv has a.png in test, not in train; give it the split that m gives",
        ),
        ({"paired_with": "m"}, r"n/meta.json has 'm' as paired_with; write a list of the names of data sets"),
    ],
)
def test_wrong_partners_give_one_sentence_with_the_remedy(tmp_path, partner, words):
    make(tmp_path, "m", "mitochondrion", paired_with=["n"])
    if partner is not None:
        make(tmp_path, "n", "neurite cross-section", **partner)
    with pytest.raises(InputError, match=words):
        real_scenes(tmp_path, "train")


def test_an_unknown_data_set_is_named(tmp_path):
    make(tmp_path, "m", "mitochondrion")
    with pytest.raises(InputError, match="in_domain has no data set k; name one of m"):
        real_scenes(tmp_path, "train", names=["k"])


# ---------------------------------------------------------------- ambiguous clicks


def scene_of(structures, shape=(40, 40), absent=()):
    return NamedScene(np.zeros((*shape, 3), np.uint8), structures, tuple(absent), "scene", "source", "train")


def square(top, left, side, number=1, shape=(40, 40)):
    labels = np.zeros(shape, np.int32)
    labels[top : top + side, left : left + side] = number
    return labels


def test_a_click_in_an_organelle_may_mean_what_lies_around_it():
    neurites = square(2, 2, 30, 4) + square(33, 33, 6, 5)  # the second one holds nothing
    scene = scene_of({"mitochondrion": square(10, 15, 10, 7), "neurite": neurites})
    ((ids, places),) = ambiguous(scene, margin=3)
    assert ids == {"mitochondrion": 7, "neurite": 4}
    np.testing.assert_array_equal(places, square(13, 18, 4) > 0)  # 3 pixels off the edges
    np.testing.assert_array_equal(ambiguous(scene, margin=0)[0][1], square(10, 15, 10) > 0)


def test_a_small_object_is_clicked_in_its_middle():
    scene = scene_of({"nucleus": square(10, 10, 5), "cell": square(2, 2, 30)})
    ((_, places),) = ambiguous(scene, margin=3)
    assert places.any() and not (places & ~(square(11, 11, 3) > 0)).any()


def test_the_image_border_is_no_edge():
    scene = scene_of({"nucleus": square(0, 0, 10), "cell": square(0, 0, 30)})
    ((_, places),) = ambiguous(scene, margin=3)
    np.testing.assert_array_equal(places, square(0, 0, 7) > 0)


def test_three_levels_and_clicks_that_miss_the_innermost():
    maps = {"nucleus": square(8, 8, 10), "cell": square(4, 4, 18), "colony": square(1, 1, 36)}
    groups = ambiguous(scene_of(maps), margin=0)
    assert sorted((list(ids) for ids, _ in groups), key=len) == [["cell", "colony"], ["nucleus", "cell", "colony"]]
    by_keys = {len(ids): places for ids, places in groups}
    np.testing.assert_array_equal(by_keys[3], maps["nucleus"] > 0)
    np.testing.assert_array_equal(by_keys[2], (maps["cell"] > 0) & (maps["nucleus"] == 0))


@pytest.mark.parametrize(
    ("structures", "count"),
    [
        ({"satellite": square(5, 5, 8), "particle": square(11, 5, 20)}, 0),  # a quarter of it lies on the particle
        ({"mitochondrion": square(5, 5, 19), "neurite": square(5, 5, 20)}, 0),  # fills it: the same mask
        ({"axon": square(9, 9, 10), "myelinated axon": square(9, 9, 10), "myelinated fibre": square(4, 4, 20)}, 2),
        ({"cell": square(5, 5, 20), "bright cell": square(5, 5, 20)}, 0),  # an attribute is no other object
        ({"cell": square(5, 5, 20)}, 0),
        ({"nucleus": square(5, 5, 3), "cell": square(2, 2, 20)}, 0),  # too small to click on
    ],
)
def test_how_many_groups_one_place_gives(structures, count):
    groups = ambiguous(scene_of(structures))
    assert len(groups) == count
    assert all(len(ids) == 2 and ids.get("myelinated fibre") for ids, _ in groups)


# ---------------------------------------------------------------- requests


def same(a, b):
    return (a.key, a.words, a.point, a.other) == (b.key, b.words, b.point, b.other) and np.array_equal(a.mask, b.mask)


@HELD_OUT
def test_an_ambiguous_click_lies_in_both_objects(held_out):
    drawn = set()
    for number, scene in enumerate(SCENES):
        for seed in range(6):
            asked = draw_ambiguous(scene, np.random.default_rng([number, seed]), held_out=held_out)
            if asked is None:
                assert not ambiguous(scene)
                break
            x, y = (int(side) for side in asked.point)
            other = scene.structures[asked.other]
            assert asked.mask[y, x] and other[y, x] and asked.words in phrases(asked.key, held_out)
            np.testing.assert_array_equal(asked.mask, scene.structures[asked.key] == scene.structures[asked.key][y, x])
            overlap = asked.mask & (other == other[y, x])
            assert overlap.sum() < 0.9 * (asked.mask | (other == other[y, x])).sum()
            assert same(asked, draw_ambiguous(scene, np.random.default_rng([number, seed]), held_out=held_out))
            drawn.add(asked.key)
    assert {"nucleus", "cell", "cytoplasm", "colony", "mitochondrion", "neurite", "soma", "neuron", "satellite"} <= drawn


def test_both_words_for_one_click_are_equally_likely():
    scene = scene_of({"mitochondrion": square(10, 15, 10), "neurite": square(2, 2, 30)})
    rng = np.random.default_rng(0)
    drawn = [draw_ambiguous(scene, rng).key for _ in range(200)]
    assert 70 < drawn.count("neurite") < 130
    asked = [draw_ambiguous(scene, rng, "neurite") for _ in range(5)]
    assert {(a.key, a.other, int(a.mask.sum())) for a in asked} == {("neurite", "mitochondrion", 900)}
    assert draw_ambiguous(scene, rng, "nucleus") is None


@HELD_OUT
def test_words_alone_mean_all_objects(held_out):
    for number, scene in enumerate(SCENES):
        for seed in range(4):
            asked = draw_union(scene, np.random.default_rng([number, seed]), held_out=held_out)
            np.testing.assert_array_equal(asked.mask, scene.structures[asked.key] > 0)
            assert asked.point is None and asked.mask.any()
            assert asked.words in phrases(asked.key, held_out) and "at the point" not in asked.words
            assert asked.other is None or ((scene.structures[asked.other] > 0) != asked.mask).any()
            assert same(asked, draw_union(scene, np.random.default_rng([number, seed]), held_out=held_out))


def test_words_alone_for_a_key_of_ones_own():
    scene = next(scene for scene in SCENES if "dark nucleus" in scene.structures)
    asked = draw_union(scene, np.random.default_rng(0), "dark nucleus")
    np.testing.assert_array_equal(asked.mask, scene.structures["dark nucleus"] > 0)
    with pytest.raises(InputError, match=r"synthetic/brightness/\d+ has no 'myelin'; name one of nucleus, "):
        draw_union(scene, np.random.default_rng(0), "myelin")


@HELD_OUT
@pytest.mark.parametrize("click", [False, True])
def test_absent_words_mean_nothing(held_out, click):
    for number, scene in enumerate(SCENES):
        asked = draw_absent(scene, np.random.default_rng(number), click, held_out)
        assert not asked.mask.any() and asked.mask.shape == scene.image.shape[:2]
        assert asked.key in scene.absent and asked.key not in scene.structures
        assert asked.words in phrases(asked.key, held_out, parts=("train",))
        assert (asked.point is not None) == click
        if click:
            x, y = (int(side) for side in asked.point)
            assert any(labels[y, x] for labels in scene.structures.values())
        assert same(asked, draw_absent(scene, np.random.default_rng(number), click, held_out))


def test_nothing_is_asked_for_where_nothing_is_known_to_be_absent():
    scene = scene_of({"cell": square(2, 2, 30)}, absent=["bright cell"])
    assert draw_absent(scene, np.random.default_rng(0), click=True) is None  # never trained
    assert draw_absent(scene, np.random.default_rng(0), click=True, held_out=True).key == "bright cell"


def test_training_never_says_what_is_held_out():
    kept = {text for key in keys(True) for text in phrases(key, held_out=True)}
    rng = np.random.default_rng(0)
    for scene in SCENES:
        drawn = [draw_ambiguous(scene, rng), draw_union(scene, rng), *(draw_absent(scene, rng, click) for click in (0, 1))]
        for asked in filter(None, drawn):
            assert asked.words not in kept and asked.key not in TABLES["composed"]["keys"]
            assert asked.other not in TABLES["composed"]["keys"]
