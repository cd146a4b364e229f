"""Metrics: hand-computed cases, a slow brute-force oracle, invariances."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.metrics import contingency_table as skimage_contingency
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from ullsam.errors import InputError
from ullsam.evaluation.metrics import (
    THRESHOLDS,
    dice,
    hit_rate,
    instance_scores,
    iou,
    iou_matrix,
    label_map_scores,
    match,
    merge_instances,
    segmentation_accuracy,
)

LABELS = arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 4))
PAIRS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.tuples(*[arrays(np.int32, shape, elements=st.integers(0, 4))] * 2)
)


def slow_ious(pred, true):
    """IoU of each pair of instances, one loop per pair."""
    rows = [
        [((pred == a) & (true == b)).sum() / ((pred == a) | (true == b)).sum() for b in np.unique(true) if b]
        for a in np.unique(pred)
        if a
    ]
    return np.array(rows).reshape(len(np.unique(pred[pred != 0])), len(np.unique(true[true != 0])))


def slow_true_positives(ious, threshold):
    """Most pairs that reach the threshold, over all one-to-one pairings."""
    small = ious if ious.shape[0] <= ious.shape[1] else ious.T
    pairings = permutations(range(small.shape[1]), small.shape[0])
    return max((sum(small[i, j] >= threshold for i, j in enumerate(p)) for p in pairings), default=0)


def slow_scores(pred, true):
    """The scores of `label_map_scores` by brute force."""
    ious = slow_ious(pred, true)
    n_pred, n_true = ious.shape
    hits = [slow_true_positives(ious, t) for t in np.arange(0.5, 1.0, 0.05)]
    accuracy = [tp / (n_pred + n_true - tp) if tp else 0 for tp in hits]
    ratio = [hits[0] / n if n else 0 for n in (n_pred, n_true, (n_pred + n_true) / 2)]
    keys = ("sa50", "sa75", "msa", "precision50", "recall50", "f1_50")
    return dict(zip(keys, (accuracy[0], accuracy[5], np.mean(accuracy), *ratio), strict=True))


def row(*labels):
    """A label map of one row."""
    return np.array([labels], dtype=np.int32)


def test_dice_and_iou_by_hand():
    pred, true = np.array([[1, 1, 1, 0]], bool), np.array([[0, 1, 1, 1]], bool)
    assert dice(pred, true) == pytest.approx(4 / 6) and iou(pred, true) == pytest.approx(2 / 4)
    assert dice(pred, ~pred) == iou(pred, ~pred) == 0
    assert dice(pred, pred) == iou(pred, pred) == 1
    empty = np.zeros_like(pred)
    assert dice(empty, empty) == iou(empty, empty) == 1
    assert dice(pred, empty) == iou(empty, pred) == 0


@given(PAIRS)
def test_dice_and_iou_agree_and_are_symmetric(pair):
    pred, true = (labels > 1 for labels in pair)
    score = iou(pred, true)
    assert dice(pred, true) == pytest.approx(2 * score / (1 + score))
    assert score == iou(true, pred) and dice(pred, true) == dice(true, pred)


def test_instance_scores_pair_masks_with_their_own_instance():
    labels = row(5, 5, 0, 9, 9)
    masks = np.array([[[0, 0, 0, 1, 0]], [[1, 1, 1, 0, 0]]], bool)
    dices, ious = instance_scores(masks, labels, np.array([9, 5]))
    np.testing.assert_allclose(dices, [2 / 3, 4 / 5])
    np.testing.assert_allclose(ious, [1 / 2, 2 / 3])
    assert hit_rate(ious) == 1 and hit_rate(ious, 0.6) == 0.5 and hit_rate([]) == 0
    none = instance_scores(masks[:0], labels, np.zeros(0, int))
    assert none[0].shape == none[1].shape == (0,)


def test_sa_of_non_overlapping_prompts_follows_from_the_hit_rate():
    true = np.repeat(np.arange(1, 6), 4)[None]  # five instances of four pixels, one row
    widths = enumerate((4, 3, 2, 1, 1), start=1)
    masks = np.array([(true == i) & (np.arange(20) % 4 < width) for i, width in widths])
    rate = hit_rate(instance_scores(masks, true, np.arange(1, 6))[1])
    assert rate == 3 / 5
    assert label_map_scores(merge_instances(masks), true)["sa50"] == pytest.approx(rate / (2 - rate))


def test_merge_keeps_the_large_mask_and_fills_only_empty_pixels():
    small, large = np.array([[0, 0, 0, 1, 1, 1]], bool), np.array([[1, 1, 1, 1, 0, 0]], bool)
    np.testing.assert_array_equal(merge_instances(np.array([small, large])), [[1, 1, 1, 1, 2, 2]])
    inside = np.array([[0, 1, 0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(merge_instances(np.array([inside, large])), [[1, 1, 1, 1, 0, 0]])


def test_merge_equal_areas_keep_their_order():
    masks = np.array([[[1, 1, 0]], [[0, 1, 1]]], bool)
    np.testing.assert_array_equal(merge_instances(masks), [[1, 1, 2]])


def test_merge_splits_what_is_not_connected_by_an_edge():
    two_pieces = np.array([[[1, 0, 0], [0, 1, 1]]], bool)
    assert merge_instances(two_pieces).tolist() == [[1, 0, 0], [0, 2, 2]]
    cut = np.array([[[1, 1, 1, 1, 1, 0]], [[0, 0, 0, 0, 0, 1]]], bool)
    assert merge_instances(cut).max() == 2
    bridge = np.array([[[0, 1, 1, 1, 0]] * 3, [[1, 1, 1, 1, 1], [0] * 5, [0] * 5]], bool)
    assert merge_instances(bridge).max() == 3  # the large mask cuts the smaller one in two


def test_merge_of_nothing_is_background():
    merged = merge_instances(np.zeros((0, 3, 4), bool))
    assert merged.shape == (3, 4) and merged.dtype == np.int32 and not merged.any()


@given(arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(1, 8))))
def test_merge_covers_the_union_with_connected_instances(masks):
    merged = merge_instances(masks)
    np.testing.assert_array_equal(merged != 0, masks.any(0))
    assert sorted(np.unique(merged[merged != 0])) == list(range(1, merged.max() + 1))
    assert all(ndimage.label(merged == i)[1] == 1 for i in range(1, merged.max() + 1))
    order = np.argsort(-masks.sum((1, 2)), kind="stable")
    owner = order[np.argmax(masks[order], axis=0)]  # the largest mask that has the pixel
    for i in range(1, merged.max() + 1):
        assert len(np.unique(owner[merged == i])) == 1


@given(PAIRS)
def test_iou_matrix_equals_that_from_skimage(pair):
    counts = skimage_contingency(*pair).toarray()  # one row and column for every number up to the largest
    union = counts.sum(1, keepdims=True) + counts.sum(0, keepdims=True) - counts
    pred_ids, true_ids = (np.unique(labels[labels != 0]) for labels in pair)
    np.testing.assert_allclose(iou_matrix(*pair), (counts / np.maximum(union, 1))[np.ix_(pred_ids, true_ids)])


@settings(deadline=None)
@given(PAIRS)
def test_dice_and_iou_are_f1_and_jaccard_of_the_pixels(pair):
    pred, true = (labels.ravel() > 1 for labels in pair)
    assert dice(pred, true) == pytest.approx(f1_score(true, pred, zero_division=1))
    assert iou(pred, true) == pytest.approx(jaccard_score(true, pred) if (pred | true).any() else 1)


@settings(deadline=None)
@given(PAIRS)
def test_precision_and_recall_are_those_of_matched_instances(pair):
    """Each true instance is found or not, and each prediction without a partner is an instance that is not there."""
    scores, ious = label_map_scores(*pair), iou_matrix(*pair)
    hits = len(match(ious)[0])
    found = [1] * hits + [0] * (ious.shape[1] - hits) + [1] * (ious.shape[0] - hits)
    there = [1] * ious.shape[1] + [0] * (ious.shape[0] - hits)
    for name, score in (("precision50", precision_score), ("recall50", recall_score), ("f1_50", f1_score)):
        assert scores[name] == pytest.approx(score(there, found, zero_division=0) if there else 0)


@settings(deadline=None)
@given(PAIRS)
def test_scores_equal_the_slow_oracle(pair):
    np.testing.assert_allclose(iou_matrix(*pair), slow_ious(*pair))
    assert label_map_scores(*pair) == pytest.approx(slow_scores(*pair))


@settings(deadline=None)
@given(PAIRS, st.sampled_from([1, 37, 10**6, -3]), st.randoms(use_true_random=False))
def test_scores_ignore_the_numbering(pair, factor, random):
    pred, true = pair
    ids = list(range(1, 5))
    random.shuffle(ids)
    renumbered = np.array([0, *ids])[pred] * factor
    assert label_map_scores(renumbered, true) == pytest.approx(label_map_scores(pred, true))
    rows, columns = np.random.default_rng(0).permutation(pred.shape[0]), slice(None, None, -1)
    moved = label_map_scores(pred[rows][:, columns], true[rows][:, columns])
    assert moved == pytest.approx(label_map_scores(pred, true))


@settings(deadline=None)
@given(PAIRS)
def test_swapping_the_maps_swaps_precision_and_recall(pair):
    there, back = label_map_scores(*pair), label_map_scores(*pair[::-1])
    assert there["precision50"] == back["recall50"] and there["sa50"] == back["sa50"]
    assert there["f1_50"] == back["f1_50"] and there["msa"] == pytest.approx(back["msa"])
    tolerance = 1e-12
    assert 0 <= there["sa75"] <= there["sa50"] <= there["f1_50"] <= 1
    assert there["sa75"] / 2 <= there["msa"] + tolerance and there["msa"] <= there["sa50"] + tolerance


@given(LABELS)
def test_a_perfect_prediction_scores_one(labels):
    scores = label_map_scores(labels, labels)
    assert set(scores.values()) == ({1.0} if labels.any() else {0.0})


def test_threshold_is_inclusive():
    pred, true = row(1, 1, 1, 0), row(0, 1, 1, 1)  # IoU exactly one half
    assert iou_matrix(pred, true) == 0.5
    assert label_map_scores(pred, true)["sa50"] == 1 and segmentation_accuracy(np.array([[0.5]]), 0.501) == 0


def test_thresholds_are_those_of_elf():
    assert len(THRESHOLDS) == 10 and THRESHOLDS[0] == 0.5 and THRESHOLDS[5] == pytest.approx(0.75)
    three_quarters = label_map_scores(row(1, 1, 1, 0), row(1, 1, 1, 1))
    assert three_quarters["msa"] == pytest.approx(5 / 10) and three_quarters["sa75"] == 0  # as in elf


def test_scores_by_hand():
    true = row(1, 1, 1, 1, 2, 2, 3, 3, 0, 0)
    pred = row(4, 4, 4, 4, 6, 0, 0, 0, 8, 8)  # IoU 1 with the first, 1/2 with the second, the rest misses
    scores = label_map_scores(pred, true)
    assert scores["sa50"] == 2 / (2 + 1 + 1) and scores["sa75"] == 1 / (1 + 2 + 2)
    assert scores["msa"] == pytest.approx((2 / 4 + 9 * 1 / 5) / 10)
    assert scores["precision50"] == scores["recall50"] == scores["f1_50"] == pytest.approx(2 / 3)


def test_matching_prefers_many_pairs_and_one_partner_each():
    ious = np.array([[0.9, 0.6], [0.6, 0.0]])
    assert sorted(zip(*match(ious, 0.5), strict=True)) == [(0, 1), (1, 0)]
    assert list(zip(*match(ious, 0.7), strict=True)) == [(0, 0)]
    four = 0.5 * np.eye(4) + np.diag([1.0] * 3, 1)  # four halves beat three ones
    four[3, 0] = 0.49
    assert len(match(four, 0.5)[0]) == 4
    halves = iou_matrix(row(1, 1, 2, 2), row(5, 5, 5, 5))  # both halves reach 1/2 of one instance
    assert len(match(halves, 0.5)[0]) == 1 and segmentation_accuracy(halves) == 1 / 2


def test_empty_label_maps_score_zero():
    empty = np.zeros((3, 3), np.int32)
    full = np.ones((3, 3), np.int32)
    for pair in ((empty, empty), (empty, full), (full, empty)):
        assert set(label_map_scores(*pair).values()) == {0.0}
    assert iou_matrix(empty, full).shape == (0, 1)


def test_large_ids_need_no_large_table():
    labels = row(2**31 - 1, 0, 70000).astype(np.int64)
    assert label_map_scores(labels, row(1, 0, 2))["msa"] == 1
    assert label_map_scores(row(1, 0, 2).astype(np.uint16), labels)["msa"] == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: dice(np.ones((2, 2), bool), np.ones((2, 3), bool)),
        lambda: iou(np.ones((2, 2), bool), np.ones((1, 2, 2), bool)),
        lambda: dice(np.full((2, 2), 0.3), np.ones((2, 2), bool)),
        lambda: label_map_scores(row(1, 2), row(1, 2, 3)),
        lambda: label_map_scores(row(1, 2) * 1.0, row(1, 2)),
        lambda: label_map_scores(row(1, 2)[0], row(1, 2)[0]),
        lambda: label_map_scores(np.zeros((0, 4), int), np.zeros((0, 4), int)),
        lambda: iou_matrix(row(1, 2), row(1, 2).T),
        lambda: merge_instances(np.ones((2, 2), bool)),
        lambda: merge_instances(np.ones((1, 2, 2))),
        lambda: instance_scores(np.ones((2, 1, 3), bool), row(1, 2, 3), np.array([1])),
        lambda: instance_scores(np.ones((1, 1, 2), bool), row(1, 2, 3), np.array([1])),
        lambda: instance_scores(np.ones((1, 1, 3), bool), row(1, 2, 3), np.array([4])),
    ],
)
def test_unusable_input_is_refused(call):
    with pytest.raises(InputError):
        call()
