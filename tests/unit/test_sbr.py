"""SBR sampling: regions equal a whole-image scipy oracle, every branch is reached, points are uniform."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from ullsam.errors import InputError
from ullsam.sbr import SbrConfig, instance_ids, sample_box, sample_instances, sample_points, sbr_regions

FULL = SbrConfig(reference_side=64)  # a 64 px image at scale 1: the paper's distances in pixels


def oracle_regions(mask, steps=10, ring=(9.0, 11.0), dilation=10):
    """Core, ring and outside of a bool mask, computed as the paper puts it on the whole image."""
    core = ndimage.binary_erosion(mask, iterations=steps) if steps else mask
    inner_boundary = mask & ~ndimage.binary_erosion(mask)
    squared = np.rint(ndimage.distance_transform_edt(~inner_boundary) ** 2)
    if not mask.any():
        squared[:] = np.inf
    band = (squared >= ring[0] ** 2 - 1e-6) & (squared <= ring[1] ** 2 + 1e-6) & ~mask
    grown = ndimage.binary_dilation(mask, iterations=dilation) if dilation else mask
    return core, band, ~grown & ~mask


def scaled(config, shape):
    """Steps, ring and dilation by the documented rule."""
    s = max(shape) / config.reference_side
    middle = max(1.0, s * sum(config.ring) / 2)
    half = max(0.5, s * (config.ring[1] - config.ring[0]) / 2)
    steps = [max(1, round(distance * s)) for distance in (config.erosion, config.dilation)]
    return steps[0], (middle - half, middle + half), steps[1]


def blobs(seed, shape, count=3):
    """A label map of overlapping rings, ellipses, boxes, lines and dots, some cut by the border."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    for i in range(1, count + 1):
        height, width = shape
        x, y, a, b = rng.integers(0, [width, height, width // 2 + 1, height // 2 + 1]).tolist()
        kind = rng.integers(5)
        if kind == 0:
            cv2.ellipse(labels, (x, y), (a, b), float(rng.uniform(0, 180)), 0, 360, i, -1)
        elif kind == 1:
            cv2.rectangle(labels, (x, y), (x + a, y + b), i, -1)
        elif kind == 2:
            cv2.ellipse(labels, (x, y), (a, b), 0, 0, 270, i, int(rng.integers(1, 6)))  # concave
        elif kind == 3:
            cv2.line(labels, (x, y), (a, b), i, 1)
        else:
            labels[y, x] = i
    return labels


def disc(side=64, radius=20, center=None):
    """A bool disc."""
    y, x = np.indices((side, side))
    cx, cy = center or (side // 2, side // 2)
    return (x - cx) ** 2 + (y - cy) ** 2 <= radius**2


def at(array, points):
    """Values of an array at (x, y) points."""
    x, y = points.astype(int).T
    return array[y, x]


CASES = st.tuples(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 48), st.integers(1, 48)),
    st.sampled_from([FULL, SbrConfig(), SbrConfig(reference_side=128), SbrConfig(2, (2, 3.5), 4, 32)]),
)


@settings(deadline=None, max_examples=300)
@given(CASES)
def test_regions_equal_the_oracle(case):
    seed, shape, config = case
    labels = blobs(seed, shape)
    for instance in (1, 2, 3, 9):
        regions = sbr_regions(labels, config, instance)
        expected = oracle_regions(labels == instance, *scaled(config, shape))
        for name, truth in zip(("core", "ring", "outside"), expected, strict=True):
            np.testing.assert_array_equal(getattr(regions, name), truth, err_msg=name)


@pytest.mark.parametrize("seed", range(6))
def test_regions_equal_the_oracle_at_1024_pixels(seed):
    labels = blobs(seed, (1024, 700), count=1)
    regions = sbr_regions(labels)
    found = (regions.core, regions.ring, regions.outside)
    for mine, truth in zip(found, oracle_regions(labels == 1), strict=True):
        np.testing.assert_array_equal(mine, truth)


@settings(deadline=None, max_examples=300)
@given(CASES, st.integers(0, 6), st.integers(0, 6), st.integers(0, 99))
def test_points_lie_in_the_region_of_their_branch(case, n_pos, n_neg, draw):
    seed, shape, config = case
    labels = blobs(seed, shape)
    instance = 1 + draw % 4
    mask = labels == instance
    if mask.all():
        return
    result = sample_points(labels, instance, np.random.default_rng(draw), n_pos, n_neg, config)
    core, ring, outside = oracle_regions(mask, *scaled(config, shape))
    assert result.points.shape == (n_pos + n_neg, 2) and result.points.dtype == np.float32
    assert result.labels.tolist() == [1] * n_pos + [0] * n_neg and result.labels.dtype == np.int64
    assert (result.points >= 0).all() and (result.points < (shape[1], shape[0])).all()
    positive, negative = result.points[:n_pos], result.points[n_pos:]
    assert not at(mask, negative).any()
    assert result.positive_branch == (
        "core" if core.sum() >= n_pos else "core_repeated" if core.any() else "centroid" if mask.any() else "image_center"
    )
    assert result.negative_branch == ("ring" if ring.sum() >= n_neg else "outside" if outside.sum() >= n_neg else "anywhere")
    if result.positive_branch.startswith("core"):
        assert at(core, positive).all()
        assert len(np.unique(positive, axis=0)) == min(n_pos, core.sum())
    if result.negative_branch != "anywhere":
        assert at({"ring": ring, "outside": outside}[result.negative_branch], negative).all()
        assert len(np.unique(negative, axis=0)) == n_neg


@settings(deadline=None)
@given(CASES, st.integers(0, 99))
def test_same_generator_same_points_with_and_without_a_bounding_box(case, draw):
    seed, shape, config = case
    labels = blobs(seed, shape)
    if (labels == 1).all():
        return
    bounds = cv2.boundingRect((labels == 1).view(np.uint8))
    first, second, third = (
        sample_points(labels, 1, np.random.default_rng(draw), 2, 3, config, bounds=b) for b in (None, None, bounds)
    )
    np.testing.assert_array_equal(first.points, second.points)
    np.testing.assert_array_equal(first.points, third.points)


def test_distances_nine_and_eleven_are_included():
    mask = np.zeros((64, 64), bool)
    mask[32, 32] = True
    ring = sbr_regions(mask, FULL).ring
    y, x = np.indices(mask.shape) - 32
    np.testing.assert_array_equal(ring, (x**2 + y**2 >= 81) & (x**2 + y**2 <= 121))
    assert ring[32, 41] and ring[32, 43] and not ring[32, 40] and not ring[32, 44]
    assert not ring[36, 40] and not ring[33, 43]  # squared distances 80 and 122


def test_erosion_takes_ten_steps_of_the_cross_and_starts_at_the_image_border():
    mask = np.zeros((64, 64), bool)
    mask[0:40, 10:50] = True
    core = sbr_regions(mask, FULL).core
    np.testing.assert_array_equal(np.argwhere(core)[[0, -1]], [[10, 20], [29, 39]])
    y, x = abs(np.indices((64, 64)) - 32)
    np.testing.assert_array_equal(sbr_regions(x + y <= 12, FULL).core, x + y <= 2)
    np.testing.assert_array_equal(sbr_regions(x + y <= 12, SbrConfig(erosion=0)).core, x + y <= 12)


def test_distances_scale_with_the_longer_side():
    config = SbrConfig()
    assert (config.steps(10, (1024, 300)), config.ring_in((1024, 300))) == (10, (9, 11))
    assert (config.steps(10, (512, 512)), config.ring_in((512, 512))) == (5, (4.5, 5.5))
    assert (config.steps(10, (256, 64)), config.ring_in((256, 64))) == (2, (2, 3))
    assert (config.steps(10, (64, 64)), config.ring_in((64, 64))) == (1, (0.5, 1.5))
    assert (config.steps(10, (2048, 9)), config.ring_in((2048, 9))) == (20, (18, 22))
    assert config.steps(0, (1024, 1024)) == 0


@pytest.mark.parametrize("side", [8, 16, 33, 64, 100, 128, 200, 256, 384, 512, 700])
def test_ring_is_reachable_at_every_scale(side):
    mask = np.zeros((side, side), bool)
    mask[side // 2, side // 2] = True
    result = sample_points(mask, 1, np.random.default_rng(0))
    assert (result.positive_branch, result.negative_branch) == ("centroid", "ring")


def test_core_smaller_than_the_number_of_points_is_repeated_in_order():
    mask = np.zeros((64, 64), bool)
    mask[20:41, 20:42] = True  # ten steps leave two pixels
    result = sample_points(mask, 1, np.random.default_rng(0), 5, 0, FULL)
    assert result.positive_branch == "core_repeated"
    assert result.points.tolist() == [[30, 30], [31, 30], [30, 30], [31, 30], [30, 30]]
    assert sample_points(mask, 1, np.random.default_rng(0), 2, 0, FULL).positive_branch == "core"


def test_thin_instance_gives_its_centroid_even_outside_of_it():
    mask = np.zeros((64, 64), bool)
    mask[10:31, 10] = mask[10, 10:31] = mask[30, 10:31] = True  # an open frame, empty in its middle
    result = sample_points(mask, 1, np.random.default_rng(0), 3, 1, FULL)
    rows, columns = np.nonzero(mask)
    assert result.positive_branch == "centroid" and len(np.unique(result.points[:3], axis=0)) == 1
    np.testing.assert_allclose(result.points[0], [columns.mean(), rows.mean()], atol=0.5)
    assert not at(mask, result.points[:1]).any()


def test_centroid_of_halves_is_rounded_up_wherever_the_instance_lies():
    for x, y in ((4, 7), (5, 8), (0, 0), (62, 62)):
        mask = np.zeros((64, 64), bool)
        mask[y : y + 2, x : x + 2] = True
        points = sample_points(mask, 1, np.random.default_rng(0), 1, 0, FULL).points
        assert points.tolist() == [[x + 1, y + 1]]


def test_missing_instance_gives_the_image_center_and_negatives_anywhere():
    labels = np.zeros((40, 64), np.int32)
    result = sample_points(labels, 7, np.random.default_rng(0), 2, 3, FULL)
    assert (result.positive_branch, result.negative_branch) == ("image_center", "outside")
    assert result.points[:2].tolist() == [[32, 20], [32, 20]]


def test_negatives_fall_back_from_ring_to_outside_to_anywhere():
    line = np.zeros((1, 64), np.int32)
    line[0, :10] = 1  # in one row the ring is 18 to 20, and the outside begins at 20
    rng = np.random.default_rng(0)
    branches = [sample_points(line, 1, rng, 1, n, FULL).negative_branch for n in (0, 3, 4, 44, 45)]
    assert branches == ["ring", "ring", "outside", "outside", "anywhere"]
    corner = np.ones((64, 64), np.int32)
    corner[0, :2] = 0
    result = sample_points(corner, 1, rng, 1, 5, FULL)
    assert result.negative_branch == "anywhere" and set(map(tuple, result.points[1:])) <= {(0, 0), (1, 0)}


def test_instance_that_fills_the_image_has_no_negative_point():
    full = np.ones((32, 32), np.int32)
    with pytest.raises(InputError, match="fills the whole image"):
        sample_points(full, 1, np.random.default_rng(0), config=FULL)
    assert sample_points(full, 1, np.random.default_rng(0), 2, 0, FULL).labels.tolist() == [1, 1]


def test_other_instances_are_negatives_unless_excluded():
    labels = np.where(disc(radius=14), 1, 2).astype(np.int32)
    labels[:, :8] = 0
    rng = np.random.default_rng(0)
    allowed = sample_points(labels, 1, rng, 1, 60, FULL)
    assert allowed.negative_branch == "ring" and (at(labels, allowed.points[1:]) == 2).any()
    strict = SbrConfig(reference_side=64, exclude_other_instances=True)
    excluded = sample_points(labels, 1, rng, 1, 60, strict)
    assert excluded.negative_branch == "outside" and not at(labels, excluded.points[1:]).any()
    regions = sbr_regions(labels, strict)
    assert not labels[regions.ring | regions.outside].any()
    np.testing.assert_array_equal(regions.ring, sbr_regions(labels, FULL).ring & (labels == 0))
    crowded = sample_points(np.where(labels == 0, 2, labels), 1, rng, 1, 5, strict)
    assert crowded.negative_branch == "anywhere" and (at(labels, crowded.points[1:]) != 1).all()


def uniform_p_value(candidates, points):
    """Chi-square p value of points against the uniform distribution over candidate pixels."""
    counts = np.zeros(candidates.shape)
    np.add.at(counts, tuple(points.astype(int).T[::-1]), 1)
    assert counts[~candidates].sum() == 0
    return stats.chisquare(counts[candidates]).pvalue


@pytest.mark.parametrize("center", [(32, 32), (12, 50)])
def test_points_are_uniform_over_core_and_ring(center):
    mask = disc(radius=15, center=center)
    rng = np.random.default_rng(1)
    regions = sbr_regions(mask, FULL)
    drawn = [sample_points(mask, 1, rng, 1, 3, FULL).points for _ in range(4000)]
    positive, negative = np.concatenate([p[:1] for p in drawn]), np.concatenate([p[1:] for p in drawn])
    assert uniform_p_value(regions.core, positive) > 0.01
    assert uniform_p_value(regions.ring, negative) > 0.01


def test_points_are_uniform_outside_and_anywhere():
    rng = np.random.default_rng(2)
    line = np.zeros((1, 64), np.int32)
    line[0, :10] = 1
    drawn = np.concatenate([sample_points(line, 1, rng, 0, 4, FULL).points for _ in range(500)])
    assert uniform_p_value(sbr_regions(line, FULL).outside, drawn) > 0.01
    drawn = np.concatenate([sample_points(line, 1, rng, 0, 54, FULL).points for _ in range(100)])
    assert uniform_p_value(line == 0, drawn) > 0.01


def test_the_random_masks_reach_every_branch():
    reached, config = set(), SbrConfig(reference_side=100)
    for seed in range(150):
        labels = blobs(seed, (30, 24), count=2)
        if not (labels == 1).all():
            result = sample_points(labels, 1, np.random.default_rng(seed), 3, 4 * seed, config)
            reached |= {result.positive_branch, result.negative_branch}
    assert reached == {"core", "core_repeated", "centroid", "image_center", "ring", "outside", "anywhere"}


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3))
def test_instances_are_chosen_once_each(seed, max_instances, n_pos, n_neg):
    labels = blobs(seed, (48, 32), count=5) * 1000
    rng = np.random.default_rng(seed)
    ids, points, point_labels = sample_instances(labels, rng, max_instances, n_pos, n_neg)
    present = set(np.unique(labels)) - {0}
    assert len(set(ids.tolist())) == len(ids) and set(ids.tolist()) <= present
    assert len(ids) == min(max_instances, len(present)) or (n_neg and len(present) == 1 and labels.all())
    assert points.shape == (*point_labels.shape, 2) == (len(ids), n_pos + n_neg, 2)
    for i, own, kinds in zip(ids, points, point_labels, strict=True):
        assert kinds.sum() == n_pos and (at(labels, own[kinds == 0]) != i).all()


def test_instances_are_chosen_uniformly():
    labels = np.kron(np.arange(1, 10).reshape(3, 3), np.ones((8, 8), np.int32))
    rng = np.random.default_rng(0)
    chosen = np.concatenate([sample_instances(labels, rng)[0] for _ in range(600)])
    counts = np.bincount(chosen, minlength=10)[1:]
    assert counts.sum() == 2400 and abs(counts - 2400 / 9).max() < 5 * (2400 / 9) ** 0.5


def test_images_without_a_usable_instance_give_no_instances():
    for labels in (np.zeros((9, 9), np.int32), np.full((9, 9), 3)):
        ids, points, point_labels = sample_instances(labels, np.random.default_rng(0))
        assert ids.shape == (0,) and points.shape == (0, 4, 2) and point_labels.shape == (0, 4)
    assert sample_instances(np.full((9, 9), 3), np.random.default_rng(0), n_neg=0)[0].tolist() == [3]


def test_instance_ids_of_any_integer_map():
    assert instance_ids(np.array([[0, 5], [2, 5]], np.uint16)).tolist() == [2, 5]
    assert instance_ids(np.array([[2**31 - 1, 0, 7]])).tolist() == [7, 2**31 - 1]
    assert instance_ids(np.array([[False, True]])).tolist() == [1]


@given(st.integers(0, 2**32 - 1), st.floats(0, 2))
def test_box_is_exact_without_jitter_and_else_bounded_and_clipped(seed, jitter):
    labels = np.zeros((30, 40), np.int32)
    labels[5:9, 10:31] = 4
    rng = np.random.default_rng(seed)
    assert sample_box(labels, 4, rng).tolist() == [10, 5, 30, 8]
    box = sample_box(labels, 4, rng, jitter)
    assert box.shape == (4,) and box.dtype == np.float32
    assert 0 <= box[0] <= box[2] <= 39 and 0 <= box[1] <= box[3] <= 29
    if jitter < 0.4:
        assert (abs(box - [10, 5, 30, 8]) <= jitter * np.array([21, 4, 21, 4]) + 1e-5).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda rng: sample_points(np.zeros((4, 4)), 1, rng),
        lambda rng: sample_points(np.zeros((0, 4), int), 1, rng),
        lambda rng: sample_points([[0, 1]], 1, rng),
        lambda rng: sample_points(np.eye(4, dtype=int), 0, rng),
        lambda rng: sample_points(np.eye(4, dtype=int), 1, rng, n_pos=-1),
        lambda rng: sample_instances(np.zeros((4, 4)), rng),
        lambda rng: sample_box(np.eye(4, dtype=int), 2, rng),
        lambda rng: sample_box(np.eye(4, dtype=int), 1, rng, jitter=-0.1),
        lambda rng: SbrConfig(ring=(11, 9)),
    ],
)
def test_unusable_input_is_refused(call):
    with pytest.raises(InputError):
        call(np.random.default_rng(0))
