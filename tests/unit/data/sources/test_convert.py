"""What conversion does to any dataset: split by source, sample, square, number the instances."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ullsam import Corpus
from ullsam.data.sources.convert import Item, instances, prepare, split_items, square


def items(sizes, split=None):
    return [Item(f"s{i}", split, f"s{i} {k}", None) for i, size in enumerate(sizes) for k in range(size)]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(0, 5))
def test_a_split_never_divides_a_source(sizes, seed):
    groups = split_items(items(sizes), seed)
    found = [{item.source for item in group} for group in groups.values()]
    assert sum(len(group) for group in groups.values()) == sum(sizes)
    assert not found[0] & found[1] and not found[0] & found[2] and not found[1] & found[2]
    assert groups["train"]


def test_a_datasets_own_split_stays():
    given_items = items([3, 3, 3], "train") + [Item("t", "test", "t", None)] * 4
    groups = split_items(given_items, 0)
    assert len(groups["test"]) == 4 and {item.source for item in groups["test"]} == {"t"}
    assert len(groups["val"]) == 3 and len(groups["train"]) == 6


def test_sampling_takes_others_for_empty_images(tmp_path):
    empty = np.zeros((20, 20), np.int32)
    full = np.pad(np.ones((8, 8), np.int32), 6)
    pictures = [(np.full((20, 20), i, np.uint8), empty if i % 2 else full) for i in range(20)]
    some = [Item(f"s{i}", None, f"n{i}", lambda pair=pair: pair) for i, pair in enumerate(pictures)]
    counts, skipped = prepare(some, tmp_path / "c", {"name": "c"}, {"ood": 7}, seed=3)
    corpus = Corpus(tmp_path / "c")
    assert counts == {"ood": 7} and skipped == []
    values = [int(corpus.read(record).image[0, 0, 0]) for record in corpus.records]
    assert all(value % 2 == 0 for value in values) and len(set(values)) == 7


def test_whatever_stops_an_image_from_being_read_is_noted(tmp_path):
    def broken():
        raise EOFError("the chunk ends too early\nmore lines")

    labels = np.pad(np.ones((8, 8), np.int32), 4)
    items = [Item("a", None, "first", broken), Item("b", None, "second", lambda: (labels.astype(np.uint8), labels))]
    counts, skipped = prepare(items, tmp_path / "made", {}, {"ood": 9})
    assert counts == {"ood": 1} and skipped == ["first: the chunk ends too early"]


def test_square_pads_and_shrinks_and_keeps_places():
    labels = np.zeros((100, 200), np.int32)
    labels[40:60, 150:190] = 5
    image, made = square(np.full((100, 200, 3), 9, np.uint8), labels, 100)
    assert image.shape == (100, 100, 3) and made.shape == (100, 100)
    assert (made[20:30, 75:95] == 1).all() and made.sum() == 200
    assert (image[:50] == 9).all() and (image[50:] == 0).all()
    assert square(np.zeros((30, 20, 3), np.uint8), labels[:30, :20], 100)[0].shape == (30, 30, 3)  # never made larger


def test_instances_are_connected_and_large_enough():
    labels = np.zeros((20, 20), np.int32)
    labels[0:5, 0:5] = labels[10:15, 10:15] = 4
    labels[0, 19] = 9
    made = instances(labels)
    assert made.max() == 2 and made[0, 19] == 0 and made[2, 2] != made[12, 12]
