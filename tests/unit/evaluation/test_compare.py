"""The contest of VLSA variants: equal starts, equal data, honest rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ullsam import ULLSAM, Corpus, InputError, Mixture, TrainConfig, generate, write_labels
from ullsam.evaluation import compare
from ullsam.evaluation.compare import FAST, UNSEEN, compare_vlsa, make_variant, score_samples
from ullsam.evaluation.statistics import format_table
from ullsam.files import write_json

SMALL = TrainConfig(steps=1, batch_size=1, instances=1, warmup=1)


@pytest.fixture(scope="module")
def start():
    return ULLSAM.from_preset("debug")


@pytest.fixture(scope="module")
def samples():
    return [generate("fluorescence_nuclei", UNSEEN, 64)]


def small_mixture():
    return Mixture([], ["fluorescence_nuclei"], 1.0, synthetic_size=64)


def test_variants_share_the_start_but_not_its_weights(start):
    a, b = make_variant(start, "tokens", 0), make_variant(start, "none", 0)
    for name in ("sam", "projection"):
        mine, first = getattr(a, name).state_dict(), getattr(start, name).state_dict()
        assert all(torch.equal(mine[key], first[key]) for key in first)
        assert all(mine[key].data_ptr() != first[key].data_ptr() for key in first)
    assert a.llm is start.llm and b.vlsa is None
    assert (a.config.vlsa, b.config.vlsa, start.config.vlsa) == ("tokens", "none", "paper")


def test_seed_decides_the_first_weights(start):
    a, b, c = (make_variant(start, "tokens", seed).vlsa.queries for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_rows_hold_means_and_spread(start, samples, tmp_path):
    rows = compare_vlsa(["none", "paper"], 1, (0, 1), small_mixture(), samples, tmp_path, start, SMALL, progress=False)
    assert [row["variant"] for row in rows] == ["none", "paper"]
    assert list(rows[0]) == [
        "variant",
        "dice_mean",
        "dice_std",
        "sa_mean",
        "sa_std",
        "seconds_per_step",
        "parameters",
        "steps",
        "model",
    ]
    assert rows[0]["parameters"] == 0
    assert rows[1]["parameters"] == sum(p.numel() for p in start.vlsa.parameters())
    assert all(0 <= row["dice_mean"] <= 1 and row["dice_std"] >= 0 and row["seconds_per_step"] > 0 for row in rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["none-seed0", "none-seed1", "paper-seed0", "paper-seed1"]
    write_json(tmp_path / "rows.json", {"rows": rows})
    assert format_table(rows).count("\n") == 2


def test_one_seed_has_no_spread_and_the_start_stays(start, samples):
    before = {k: v.clone() for k, v in start.state_dict().items()}
    (row,) = compare_vlsa("residual", 1, [3], small_mixture(), samples, model=start, train=SMALL, progress=False)
    assert row["dice_std"] is None and row["sa_std"] is None and row["steps"] == 1
    assert all(torch.equal(v, before[k]) for k, v in start.state_dict().items())


def test_same_contest_same_numbers(start, samples):
    first, second = (
        compare_vlsa(["tokens"], 1, [0], small_mixture(), samples, model=start, train=SMALL, progress=False)
        for _ in range(2)
    )
    assert first[0]["dice_mean"] == second[0]["dice_mean"]


def test_samples_without_instances_are_passed_over(start, samples):
    empty = generate("fluorescence_nuclei", 0, 64)
    empty.labels[:] = 0
    assert len(score_samples(start, [empty, *samples])) == 1


def test_held_out_images_are_those_of_the_split_val(start, tmp_path):
    import cv2

    for name in ("images", "masks"):
        (tmp_path / "c" / name).mkdir(parents=True)
    for i in range(3):
        sample = generate("fluorescence_nuclei", i, 64)
        cv2.imwrite(str(tmp_path / "c" / "images" / f"{i}.png"), sample.image)
        write_labels(tmp_path / "c" / "masks" / f"{i}.png", sample.labels)
    (tmp_path / "c" / "images.csv").write_text("file,split\n0.png,train\n1.png,train\n2.png,val\n")
    corpus = Corpus(tmp_path / "c")
    mixture = Mixture([(corpus, "train")])
    rows = compare_vlsa(["none"], 1, [0], mixture, None, tmp_path / "kept", start, SMALL, progress=False)
    again = compare_vlsa(
        ["none"], 1, [0], mixture, [corpus.read(corpus.records[2])], tmp_path / "kept", start, SMALL, progress=False
    )
    assert rows == again  # the second call finds the finished run and scores it on the same image


def test_fast_mode_is_a_few_steps_of_the_debug_model(monkeypatch):
    monkeypatch.setenv("ULLSAM_FAST", "1")
    rows = compare_vlsa(["none"], steps=500, seeds=[0], progress=False)
    assert rows[0]["steps"] == FAST.steps and rows[0]["model"] == "debug"


def test_mistakes_are_found_before_training(start):
    with pytest.raises(InputError, match=r"no VLSA variants \['mine'\]; name some of none, paper"):
        compare_vlsa(["paper", "mine"], model=start)
    with pytest.raises(InputError, match="seeds is empty"):
        compare_vlsa(["paper"], seeds=[], model=start)
    with pytest.raises(InputError, match="no language model"):
        compare_vlsa(["paper"], model=ULLSAM.from_preset("debug", llm=None, vlsa="none"))


class Highest(np.random.Generator):
    """A generator whose every draw is the largest possible one; random() is 0, so that a Mixture paints its images."""

    def __init__(self):
        super().__init__(np.random.PCG64(0))

    def random(self, *args, **kwargs):
        return 0.0

    def integers(self, low, high=None, **kwargs):
        return (low if high is None else high) - 1


def seed_of(sample):
    return int(sample.name.rpartition("/")[2])


@given(st.integers(0, 2**63 - 1))
@settings(max_examples=50)
def test_training_draws_seeds_below_the_unseen_ones(seed):
    assert 0 <= seed_of(small_mixture().draw(np.random.default_rng(seed))) < UNSEEN


def test_the_largest_seed_that_training_can_draw_is_below_the_unseen_ones():
    assert seed_of(small_mixture().draw(Highest())) == UNSEEN - 1


def test_held_out_synthetic_images_have_unseen_seeds(start, monkeypatch):
    scored = []
    monkeypatch.setattr(
        compare, "score_samples", lambda model, samples: scored.extend(samples) or score_samples(model, samples)
    )
    compare_vlsa(["none"], 1, [0], small_mixture(), model=start, train=SMALL, progress=False)
    assert scored and all(seed_of(sample) >= UNSEEN for sample in scored)
    drawn = [generate("fluorescence_nuclei", seed, 64).image for seed in (*range(20), UNSEEN - 1)]
    assert not any(np.array_equal(sample.image, image) for sample in scored for image in drawn)
