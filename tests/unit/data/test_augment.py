"""Training views: determinism, balance, what a crop keeps, and that image and labels stay together."""

import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ullsam.data.augment import TrainViews, ViewConfig, choose_crop, jitter
from ullsam.data.corpus import Corpus, Sample
from ullsam.data.io import write_labels
from ullsam.data.mixture import Mixture
from ullsam.errors import InputError

STILL = ViewConfig(tone=0, invert=0, grey=0, gain=(1, 1), blur=0, noise=0)  # no jitter of grey levels


def make(folder, count=3, size=(90, 120), paint=None, colour=False):
    """Images whose grey level is 100 inside instances and 20 + their number outside."""
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    for i in range(count):
        labels = np.zeros(size, np.int32)
        (paint or discs)(labels)
        image = np.where(labels > 0, 100, 20 + i).astype(np.uint8)
        image = np.dstack([image, image // 2, image // 4]) if colour else image
        cv2.imwrite(str(folder / "images" / f"{i}.png"), image)
        write_labels(folder / "masks" / f"{i}.tif", labels)
    return Corpus(folder)


def discs(labels):
    for n, (x, y) in enumerate([(20, 20), (60, 40), (100, 70), (25, 75)], start=1):
        cv2.circle(labels, (x, y), 9, n * 7, -1)


@pytest.fixture
def mixture(tmp_path):
    return Mixture([(make(tmp_path / "a"), None)])


def same(one, other):
    np.testing.assert_array_equal(one["image"], other["image"])
    np.testing.assert_array_equal(one["labels"], other["labels"])
    assert one["meta"] == other["meta"] and one["caption"] == other["caption"]


# mixture


def test_a_draw_depends_on_seed_and_index_only(tmp_path):
    corpus = make(tmp_path / "a", count=20)
    one, other = Mixture([(corpus, None)], seed=3), Mixture([(corpus, None)], cache_mb=0)
    names = [one.sample(i).name for i in range(30)]
    assert names == [other.sample(i, seed=3).name for i in reversed(range(30))][::-1]
    assert names != [one.sample(i, seed=4).name for i in range(30)]


def test_sources_are_balanced_whatever_their_size(tmp_path):
    mixture = Mixture([(make(tmp_path / "big", 30), None), (make(tmp_path / "small", 2), None)])
    names = [mixture.sample(i).name for i in range(600)]
    assert 240 < sum(name.startswith("small") for name in names) < 360
    assert 90 < names.count("small/0") < 210


def test_fraction_of_synthetic_draws(tmp_path, monkeypatch):
    def generate(style, seed, size):
        labels = np.ones((size, size), np.int32)
        return Sample(np.zeros((size, size, 3), np.uint8), labels, {}, f"{style}-{seed}")

    monkeypatch.setattr("ullsam.data.mixture.generate", generate)
    mixture = Mixture([(make(tmp_path / "a"), None)], ["x", "y"], 0.3, synthetic_size=32)
    names = [mixture.sample(i).name for i in range(1000)]
    assert 250 < sum(name[0] in "xy" for name in names) < 350
    assert len(set(names)) > 250 and {name[0] for name in names} == set("xya")
    assert Mixture([], ["x"], 1.0).sample(0).labels.shape == (256, 256)


def test_mixture_refuses(tmp_path):
    corpus = make(tmp_path / "a")
    for arguments, words in [
        (([],), "no datasets"),
        (([(corpus, None)], ["x"], 1.5), "from 0 to 1"),
        (([(corpus, None)], [], 0.5), "no styles"),
        (([(corpus, "train")],), "no split 'train'"),
    ]:
        with pytest.raises(InputError, match=words):
            Mixture(*arguments)


def test_cache_gives_equal_copies_and_keeps_its_limit(tmp_path):
    corpus = make(tmp_path / "a", count=4, colour=True)
    big = np.zeros((90, 120), np.int32)
    big[5:9, 5:9], big[20:30, 20:30] = 70000, 2_000_000_000
    write_labels(tmp_path / "a" / "masks" / "1.tif", big)
    mixture = Mixture([(corpus, None)], cache_mb=0.12)  # two images of 90 x 120 x (3 + 2) bytes
    first = [mixture.sample(i) for i in range(12)]
    assert mixture._cache.used <= 0.12e6 and len(mixture._cache._kept) == 2
    for i, sample in enumerate(first):
        expected = corpus.read(next(r for r in corpus.records if r.file == sample.meta["file"]))
        np.testing.assert_array_equal(sample.image, expected.image)
        if sample.meta["file"] == "1.png":
            assert sorted(np.unique(sample.labels)) == [0, 1, 2] and (sample.labels[20:30, 20:30] == 2).all()
        else:
            np.testing.assert_array_equal(sample.labels, expected.labels)
        sample.image[:] = 0  # a user's change must not reach the cache
        np.testing.assert_array_equal(mixture.sample(i).image, expected.image)


# crops


@given(st.integers(20, 200), st.integers(20, 200), st.integers(0, 10**6))
@settings(max_examples=150)
def test_crop_holds_the_object_and_stays_inside(height, width, seed):
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.int32)
    y, x = rng.integers(0, height - 4), rng.integers(0, width - 4)
    h, w = rng.integers(1, height - y + 1), rng.integers(1, width - x + 1)
    labels[y : y + h, x : x + w] = 5
    x0, y0, side = choose_crop(labels, 5, rng)
    assert x0 <= x and y0 <= y and x + w <= x0 + side and y + h <= y0 + side
    assert side <= max(height, width) and side >= min(64, max(height, width))
    assert x0 >= 0 and y0 >= 0
    assert x0 + side <= width or x0 == 0
    assert y0 + side <= height or y0 == 0


def test_object_sizes_and_places_vary():
    labels = np.zeros((1000, 1000), np.int32)
    labels[460:540, 480:520] = 1
    crops = [choose_crop(labels, 1, np.random.default_rng(i)) for i in range(400)]
    share = np.array([80 / side for _, _, side in crops])
    assert 0.079 < share.min() < 0.09 and 0.8 < share.max() < 0.91
    assert abs(np.median(np.log(share)) - np.log(0.08 * 0.9) / 2) < 0.2  # log-uniform
    place = np.array([(480 - x0) / (side - 40) for x0, _, side in crops])
    assert place.min() < 0.05 and place.max() > 0.95 and 0.4 < np.median(place) < 0.6


# views


@pytest.mark.parametrize("view", [64, 96, 256])
def test_item_is_as_described(mixture, view):
    views = TrainViews(mixture, 40, seed=1, view=view, max_instances=2)
    assert len(views) == 40
    for i in range(40):
        item = views[i]
        image, labels = item["image"], item["labels"]
        assert image.shape == (view, view, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
        assert labels.shape == (view, view) and labels.dtype == np.int32 and labels.flags.c_contiguous
        ids, counts = np.unique(labels[labels > 0], return_counts=True)
        assert ids.tolist() == list(range(1, len(ids) + 1)) and len(ids) >= 1 and counts.min() >= 12
        assert item["instances"].tolist() == [1, 2][: len(ids)]
        assert item["caption"] == "" and item["meta"]["name"].startswith("a/")


def test_items_repeat_in_any_order_and_process(mixture):
    views = TrainViews(mixture, 12, seed=5, view=64)
    forward = [views[i] for i in range(12)]
    copy = pickle.loads(pickle.dumps(views))
    for i in reversed(range(12)):
        same(copy[i], forward[i])
    other = TrainViews(mixture, 12, seed=6, view=64)
    assert any(not np.array_equal(other[i]["image"], forward[i]["image"]) for i in range(12))
    assert any(not np.array_equal(forward[0]["image"], item["image"]) for item in forward[1:])


def test_image_and_labels_stay_together(mixture):
    """Grey levels of the pictures tell inside from outside, so every turn and scale can be checked."""
    views = TrainViews(mixture, 60, view=128, config=STILL)
    for item in (views[i] for i in range(60)):
        inside, grey = item["labels"] > 0, item["image"][..., 0].astype(int)
        kernel = np.ones((7, 7), np.uint8)
        sure = cv2.erode(inside.astype(np.uint8), kernel) > 0
        assert (grey[sure] == 100).all() and sure.any()
        assert np.mean((grey >= 60) != inside) < 0.02
        for axis in (0, 1):  # no shift: the borders of both agree on average
            both = [np.nonzero(m)[axis].mean() for m in (grey >= 60, inside)]
            assert abs(both[0] - both[1]) < 1.0


def test_scaled_labels_have_no_shift():
    """Halving 4 x 4 blocks around the centre keeps the centre, for labels as for the image."""
    labels = np.zeros((96, 96), np.int32)
    labels[32:64, 32:64] = 1
    image = np.dstack([labels * 200] * 3).astype(np.uint8)

    class One:
        def draw(self, rng):
            return Sample(image, labels, {}, "one")

    for view in (32, 40, 96, 250):
        item = TrainViews(One(), 1, view=view, augment=False, config=replace(STILL, whole=1.0))[0]
        y, x = np.nonzero(item["labels"])
        assert abs(y.mean() - (view - 1) / 2) < 0.51 and abs(x.mean() - (view - 1) / 2) < 0.51
        assert np.mean((item["image"][..., 0] >= 100) != (item["labels"] > 0)) < 0.01


def test_whole_image_is_padded_with_zeros_below(mixture):
    views = TrainViews(mixture, 5, view=60, augment=False, config=replace(STILL, whole=1.0))
    item = views[0]
    assert item["meta"]["crop"] == (0, 0, 120)
    assert (item["image"][45:] == 0).all() and (item["image"][:45] > 0).all()
    assert (item["labels"][45:] == 0).all() and item["labels"].max() == 4


def test_padding_stays_zero_under_jitter(mixture):
    config = ViewConfig(whole=1.0, tone=1, invert=1, blur=1, noise=1)
    for item in (TrainViews(mixture, 8, view=60, config=config)[i] for i in range(8)):
        black = (item["image"] == 0).all(-1)
        assert max(black[45:].all(), black[:15].all(), black[:, 45:].all(), black[:, :15].all())
        assert item["valid_mask"].sum() == 45 * 60 and black[~item["valid_mask"]].all()


def test_small_pieces_are_removed_but_never_all(tmp_path):
    def paint(labels):
        labels[40:60, 40:60] = 1
        labels[2:4, 2:4] = 2

    mixture = Mixture([(make(tmp_path / "a", paint=paint), None)])
    whole = TrainViews(mixture, 20, view=120, config=replace(STILL, whole=1.0))
    assert all(whole[i]["labels"].max() == 1 for i in range(20))

    def speck(labels):
        labels[50, 50] = 9

    mixture = Mixture([(make(tmp_path / "b", paint=speck), None)])
    for view in (16, 64):
        for share in (0.0, 1.0):
            views = TrainViews(mixture, 10, view=view, config=replace(STILL, whole=share))
            assert all((views[i]["labels"] == 1).any() for i in range(10))


def test_target_comes_first_and_order_varies(mixture):
    views = TrainViews(mixture, 80, view=120, augment=False, config=replace(STILL, whole=1.0))
    orders = [tuple(views[i]["labels"][y, x] for x, y in [(20, 20), (60, 40), (100, 70)]) for i in range(80)]
    assert len(set(orders)) > 10
    near = TrainViews(mixture, 40, view=120, augment=False, config=replace(STILL, whole=0.0))
    for item in (near[i] for i in range(40)):  # the target, a disc of 19 x 19 pixels, is never cut
        y, x = np.nonzero(item["labels"] == 1)
        extent = 19 * 120 / item["meta"]["crop"][2]
        assert abs(np.ptp(y) + 1 - extent) < 2.1 and abs(np.ptp(x) + 1 - extent) < 2.1


def test_images_without_instances_are_skipped(tmp_path):
    corpus = make(tmp_path / "a", count=2)
    write_labels(tmp_path / "a" / "masks" / "0.tif", np.zeros((90, 120), int))
    views = TrainViews(Mixture([(corpus, None)]), 20, view=32)
    assert {views[i]["meta"]["file"] for i in range(20)} == {"1.png"}
    write_labels(tmp_path / "a" / "masks" / "1.tif", np.zeros((90, 120), int))
    with pytest.raises(InputError, match="have no instance"):
        TrainViews(Mixture([(corpus, None)]), 1, view=32)[0]


def test_arguments_and_end(mixture):
    with pytest.raises(InputError, match="at least 1"):
        TrainViews(mixture, 0)
    views = TrainViews(mixture, 2, view=16)
    assert len(list(views)) == 2
    with pytest.raises(IndexError):
        views[2]


# jitter


def ramp():
    return np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(8, axis=0)


@given(st.integers(0, 10**6))
def test_grey_stays_grey_and_colour_keeps_its_shape(seed):
    grey = jitter(ramp(), np.random.default_rng(seed))
    assert grey.shape == (8, 256, 3) and grey.dtype == np.uint8
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 1] == grey[..., 2]).all()
    colour = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    before = colour.copy()
    out = jitter(colour, np.random.default_rng(seed))
    assert out.shape == (9, 7, 3) and out.dtype == np.uint8 and (colour == before).all()


def test_single_changes_by_hand():
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(jitter(ramp(), rng, STILL), ramp())
    np.testing.assert_array_equal(jitter(ramp(), rng, replace(STILL, invert=1.0)), 255 - ramp())
    still_tone = replace(STILL, tone=1.0, gamma=(0, 0), contrast=(1, 1), brightness=(0, 0))
    np.testing.assert_array_equal(jitter(ramp(), rng, still_tone), ramp())
    square = jitter(ramp(), rng, replace(still_tone, gamma=(1, 1)))
    assert square[0, [0, 51, 128, 255], 0].tolist() == [0, 10, 64, 255]  # 255 (v / 255)^2
    brighter = jitter(ramp(), rng, replace(still_tone, brightness=(30, 30)))
    assert brighter[0, [0, 100, 240], 0].tolist() == [30, 130, 255]
    flat = jitter(ramp(), rng, replace(still_tone, contrast=(0.5, 0.5)))  # about the mean of 127.5
    assert flat[0, [0, 127, 255], 0].tolist() == [64, 127, 191]


def test_colour_gains_and_grey():
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[:] = (100, 50, 10)
    rng = np.random.default_rng(0)
    assert (jitter(colour, rng, replace(STILL, gain=(1.2, 1.2)))[0, 0] == (120, 60, 12)).all()
    level = jitter(colour, rng, replace(STILL, grey=1.0))[0, 0]
    assert (level == round(0.299 * 100 + 0.587 * 50 + 0.114 * 10)).all()


def test_noise_has_its_spread():
    flat = np.full((100, 100, 3), 128, np.uint8)
    out = jitter(flat, np.random.default_rng(0), replace(STILL, noise=1.0, spread=(8, 8)))
    assert abs(out.std() - 8) < 0.3 and abs(out.mean() - 128) < 0.3


def test_native_views_have_the_scale_of_the_canvas(mixture):
    half = TrainViews(mixture, 20, view=64, canvas=128, augment=False, config=replace(STILL, whole=0.0, native=1.0))
    whole = TrainViews(mixture, 1, view=64, augment=False, config=replace(STILL, whole=1.0))[0]["meta"]["crop"][2]
    sides = {half[i]["meta"]["crop"][2] for i in range(20)}
    assert sides == {round(whole / 2)}
