import numpy as np
import pytest
import torch

from ullsam.config import TrainConfig
from ullsam.data.batches import Batches
from ullsam.data.mixture import Mixture
from ullsam.data.referring import keys, phrases, synthetic_scenes
from ullsam.data.wordviews import _flip, word_view

SCENES = synthetic_scenes(8, seed=3, size=128)


def views(count=60):
    rng = np.random.default_rng(0)
    for i in range(count):
        view = word_view(SCENES[i % len(SCENES)], rng, 64, 128, 4)
        if view is not None:
            yield SCENES[i % len(SCENES)], view


def key_of(text):
    return next(key for key in keys() if text in phrases(key))


def test_clicks_lie_in_what_the_words_mean_or_the_words_mean_nothing():
    tasks = set()
    for scene, view in views():
        assert view["valid"][0] == 1 and view["image"].shape == (64, 64, 3) and view["truth"].shape == (4, 64, 64)
        rows = zip(view["words"], view["points"][:, 0], view["point_labels"][:, 0], view["truth"], strict=True)
        for words, (x, y), label, mask in rows:
            tasks.add((label > 0, bool(mask.any())))
            if key_of(words) not in scene.structures:
                assert not mask.any()
            elif label > 0:
                assert mask[max(0, round(y) - 1) : round(y) + 2, max(0, round(x) - 1) : round(x) + 2].any()
        assert not view["truth"][:, ~view["valid_mask"]].any()
    assert tasks == {(True, True), (False, True), (True, False), (False, False)}


def test_spare_rows_repeat_and_do_not_count():
    view = next(v for _, v in views() if v["valid"].sum() < 4)
    count = int(view["valid"].sum())
    assert view["words"][count] == view["words"][0] and np.array_equal(view["truth"][count], view["truth"][0])


def test_a_view_depends_on_its_generator_alone():
    a, b = (word_view(SCENES[0], np.random.default_rng(5), 64, 128, 2) for _ in range(2))
    assert a["words"] == b["words"] and all(np.array_equal(a[k], b[k]) for k in a if k != "words")


@pytest.mark.parametrize("number", range(8))
def test_points_turn_with_the_picture(number):
    image = np.zeros((8, 8, 3), np.uint8)
    image[2, 5] = 255  # (x, y) = (5, 2)
    flips = [number >> i & 1 for i in range(3)]
    points = np.array([[[5.0, 2.0]]], np.float32)
    turned, _, truth, points = _flip(image, image[..., 0], image[None, ..., 0] > 0, points, flips)
    x, y = points[0, 0].astype(int)
    assert turned[y, x, 0] == 255 and truth[0, y, x] and (turned > 0).sum() == 3


def test_words_about_sides_keep_the_picture_as_it_is():
    scene = next(s for s in synthetic_scenes(64, seed=1, size=128) if any(k.startswith("left ") for k in s.structures))
    rng, found = np.random.default_rng(0), 0
    for _ in range(200):
        view = word_view(scene, rng, 128, 128, 1)
        if view is not None and key_of(view["words"][0]).startswith("left ") and view["truth"].any():
            found += 1
            assert np.array_equal(view["truth"][0], scene.structures[key_of(view["words"][0])] > 0)
    assert found


def test_a_fraction_of_batches_asks_by_words():
    mixture = Mixture([], ["fluorescence_nuclei"], 1.0, synthetic_size=64, named=SCENES[:2])
    config = TrainConfig(batch_size=2, instances=3, view=64, word_fraction=0.5)
    batches = Batches(mixture, config, 128, 16, 40)
    asked = [batch for batch in (batches[i] for i in range(40)) if "words" in batch]
    assert 10 < len(asked) < 30
    assert asked[0]["truth"].shape == (2, 3, 64, 64) and asked[0]["prompts"].points.shape == (2, 3, 1, 2)
    assert len(asked[0]["words"]) == 2 * 3 and asked[0]["image"].dtype == torch.uint8
    plain = Batches(mixture, TrainConfig(batch_size=2, instances=3, view=64), 128, 16, 40)
    unasked = next(i for i in range(40) if "words" not in batches[i])
    assert torch.equal(plain[unasked]["image"], batches[unasked]["image"])  # other batches stay as they are


def test_named_scenes_are_drawn_by_data_set_and_painted_anew():
    mixture = Mixture([], ["fluorescence_nuclei"], 1.0, synthetic_size=64, named=SCENES[:3])
    mixture.synthetic_fraction = 0.5
    rng = np.random.default_rng(0)
    drawn = [mixture.draw_named(rng) for _ in range(60)]
    given = sum(any(scene is x for x in SCENES[:3]) for scene in drawn)
    assert 15 < given < 45 and len({scene.name for scene in drawn}) > 25
