"""The bootstrap: it holds the mean, repeats with its seed, and agrees with drawing by hand and with the textbook."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ullsam.evaluation.statistics import bootstrap, bootstrap_interval, estimate, mean_of_known


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 9))
def test_interval_holds_the_mean_and_repeats(values, seed):
    low, high = bootstrap_interval(values, seed, draws=300)
    assert 0 <= low <= np.mean(values) <= high <= 1 or len(values) < 8
    assert [low, high] == bootstrap_interval(values, seed, draws=300)


def test_interval_is_near_the_textbook_one_and_shrinks():
    values = np.arange(1000) % 2
    low, high = bootstrap_interval(values)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.5 / 1000**0.5, 0.5 + 1.96 * 0.5 / 1000**0.5), abs=0.005)
    few = bootstrap_interval(values[:100])
    assert few[1] - few[0] > 2.5 * (high - low)


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("count", [5, 30, 4000])
def test_interval_agrees_with_drawing_by_hand(count, level):
    values, rng = np.random.default_rng(1).gamma(2, 1, count), np.random.default_rng(2)
    means = [values[rng.integers(count, size=count)].mean() for _ in range(2000)]
    outside = (1 - level) / 2
    expected = np.quantile(means, (outside, 1 - outside))
    np.testing.assert_allclose(bootstrap_interval(values, 3, level), expected, atol=0.2 * np.std(means))


def test_seeds_draw_differently():
    values = np.random.default_rng(0).random(20)
    assert bootstrap_interval(values, 1) != bootstrap_interval(values, 2)


def test_samples_are_drawn_apart_from_each_other():
    """The mean over two sets, of which one is a single item that cannot vary."""
    many, one = np.random.default_rng(0).random((2, 50)), np.full((2, 1), 0.25)
    low, high = bootstrap([many, one], lambda *sets, axis: np.mean([x.mean(axis) for x in sets], axis=0))
    expected = np.array([bootstrap_interval(row) for row in many]).T / 2 + 0.125
    np.testing.assert_allclose([low, high], expected, atol=0.01)
    assert (low < many.mean(1) / 2 + 0.125).all() and low.shape == (2,)


def test_estimate_leaves_out_unknown_images():
    assert estimate([1, None, True, 1.0])["mean"] == 1.0
    assert estimate([1, None])["interval"] == [1.0, 1.0] and estimate([1, None])["n"] == 1
    assert estimate([None]) == {"mean": None, "interval": None, "n": 0}
    low, high = estimate([0, 1] * 50)["interval"]
    assert 0.35 < low < 0.5 < high < 0.65


def test_mean_of_known():
    assert mean_of_known([None, 1, True]) == 1.0 and mean_of_known([None]) is None
