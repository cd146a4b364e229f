"""The contest of VLSA variants: equal starts, equal data, honest rows."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ullsam import ULLSAM, Corpus, InputError, Mixture, TrainConfig, generate, write_labels
from ullsam.evaluation import compare
from ullsam.evaluation.compare import CONTEST, FAST, TRAIN, UNSEEN, ContestConfig, compare_vlsa, make_variant, score_samples
from ullsam.evaluation.metrics import dice
from ullsam.evaluation.protocol import make_prompts
from ullsam.evaluation.statistics import format_table
from ullsam.files import write_json
from ullsam.predictor import Predictor
from ullsam.sbr import instance_ids
from ullsam.train import find_stage, select_trained

SMALL = TrainConfig(steps=1, batch_size=1, instances=1, warmup=1)


@pytest.fixture(scope="module")
def start():
    return ULLSAM.from_preset("debug")


def make_images(folder, count):
    """A folder of synthetic images and masks."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        sample = generate("fluorescence_nuclei", i, 64)
        cv2.imwrite(str(folder / "images" / f"{i}.png"), sample.image)
        write_labels(folder / "masks" / f"{i}.png", sample.labels)


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


def contest(names, start, samples, seeds=(0,), **options):
    """A contest of one step on one style."""
    options = {"mixture": small_mixture(), "model": start, "train": SMALL, "progress": False} | options
    return compare_vlsa(names, 1, seeds, held_out=samples, **options)


@pytest.fixture(scope="module")
def rows(start, tmp_path_factory):
    """Rows of two variants, two seeds and two images, one without any object between them."""
    images = [generate("fluorescence_nuclei", UNSEEN + i, 64) for i in range(3)]
    images[1].labels[:] = 0
    folder = tmp_path_factory.mktemp("runs")
    return contest(["paper", ("film", {"reads": "before"})], start, images, (0, 5), folder=folder), images, folder


def test_a_row_for_each_variant_and_kind_of_prompts_and_none_always(rows, start):
    found, _, folder = rows
    names = ["paper", "film, reads=before", "none"]
    assert [(row["points"], row["variant"]) for row in found] == [(p, name) for p in ("1+0", "1+3") for name in names]
    assert list(found[0]) == [
        *("variant", "points", "dice_mean", "dice_std", "sa_mean", "sa_std", "change", "low", "high"),
        *("seconds_per_step", "parameters", "steps", "model", "per_seed", "per_image"),
    ]
    assert found[0]["parameters"] == sum(p.numel() for p in start.vlsa.parameters()) and found[2]["parameters"] == 0
    assert all(row["seconds_per_step"] > 0 and row["steps"] == 1 and row["model"] == "debug" for row in found)
    runs = [f"{name}-seed{seed}" for name in ("film_reads=before", "none", "paper") for seed in (0, 5)]
    assert sorted(p.name for p in folder.iterdir()) == runs
    write_json(folder / "rows.json", {"rows": found})
    assert format_table(found).count("\n") == 6


def test_means_and_spread_are_those_of_seeds_and_images(rows):
    for row in rows[0]:
        images, seeds = row["per_image"], row["per_seed"]
        assert [(x["seed"], x["image"]) for x in images] == [(0, 0), (0, 2), (5, 0), (5, 2)]  # image 1 has no object
        for key in ("dice", "sa"):
            means = [np.mean([x[key] for x in images if x["seed"] == seed]) for seed in (0, 5)]
            assert [x[key] for x in seeds] == pytest.approx(means) and [x["seed"] for x in seeds] == [0, 5]
            assert row[f"{key}_mean"] == pytest.approx(np.mean(means))
            assert row[f"{key}_std"] == pytest.approx(np.std(means, ddof=1))


def test_changes_are_paired_with_none(rows):
    none = {row["points"]: row for row in rows[0] if row["variant"] == "none"}
    for row in rows[0]:
        pairs = zip(row["per_image"], none[row["points"]]["per_image"], strict=True)
        changes = [a["dice"] - b["dice"] for a, b in pairs]
        if row["variant"] == "none":
            assert row["change"] is row["low"] is row["high"] is None
        else:
            assert row["change"] == pytest.approx(np.mean(changes)) and any(changes)
            assert min(changes) <= row["low"] <= row["change"] <= row["high"] <= max(changes)


@pytest.mark.parametrize("axis", [0, 1])
def test_an_interval_counts_spread_over_images_and_over_seeds(axis):
    """Four seeds and four images: what differs along one axis only has the interval of a mean of four."""
    each = np.array([0.0, 0.1, 0.2, 0.3]) + np.zeros((4, 4))
    each = each.T if axis == 0 else each
    runs = [[{"dice": x, "sa": 0} for x in row] for row in each.tolist()]
    none = [[{"dice": 0, "sa": 0} for _ in row] for row in each]
    found = compare._means(runs, none)
    draws = np.random.default_rng(0).choice([0, 0.1, 0.2, 0.3], (20_000, 4)).mean(1)
    assert found["change"] == pytest.approx(0.15)
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.021)
    alone = compare._means(runs[:1], none[:1])
    assert alone["dice_std"] is None and alone["low"] <= alone["change"] <= alone["high"]


def test_scores_are_dice_and_hits_of_a_few_objects(start):
    sample = generate("fluorescence_nuclei", UNSEEN, 128)
    (row,) = score_samples(start, [sample], [(1, 3)], most_objects=2)
    every = instance_ids(sample.labels)
    ids = every[[(2 * i + 1) * len(every) // 4 for i in range(2)]]  # evenly spaced
    predictor = Predictor(start)
    predictor.set_image(sample.image)
    masks = predictor.predict(**make_prompts(sample.labels, ids, (1, 3), np.random.default_rng([0, 0]))).masks
    assert row["dice"] == pytest.approx(np.mean([dice(m, sample.labels == i) for m, i in zip(masks, ids, strict=True)]))
    assert row["image"] == 0 and row["points"] == "1+3"


def test_boxes_and_each_image_encoded_once(start, samples, monkeypatch):
    calls = []
    monkeypatch.setattr(Predictor, "set_image", lambda self, x, f=Predictor.set_image: calls.append(1) or f(self, x))
    found = score_samples(start, samples, ["box", (1, 0), (2, 1)])
    assert [row["points"] for row in found] == ["box", "1+0", "2+1"] and calls == [1]


def test_options_may_be_given_in_three_ways(start, samples):
    ways = [
        "film",
        ("film", {"reads": "before"}),
        {"variant": "film", "reads": "before"},
        {"variant": "residual", "gate": 0.5},
    ]
    found = contest(ways, start, samples, prompts=[(1, 0)])
    assert [row["variant"] for row in found] == ["film", "film, reads=before", "residual, gate=0.5", "none"]


def test_one_seed_has_no_spread_and_the_start_stays(start, samples):
    before = {k: v.clone() for k, v in start.state_dict().items()}
    row, _ = contest("residual", start, samples, [3], prompts=[(1, 3)])
    assert row["variant"] == "residual" and row["dice_std"] is None and row["sa_std"] is None
    assert all(torch.equal(v, before[k]) for k, v in start.state_dict().items())


def test_a_subclass_of_the_model_stays_one(start):
    class Mine(ULLSAM):
        pass

    mine = Mine(start.config, start.sam, start.llm)
    assert type(make_variant(mine, "tokens", 0)) is Mine and type(make_variant(start, "tokens", 0)) is ULLSAM


def test_a_contest_trains_decoder_and_variant_and_gives_the_variant_ten_times_the_rate():
    model = ULLSAM.from_preset("debug")
    parts = {name.split(".")[0] + "." + name.split(".")[1] for name, _ in select_trained(model, find_stage(CONTEST))}
    assert {x for x in parts if not x.startswith("vlsa")} == {"sam.prompt_encoder", "sam.mask_decoder"}
    assert any(x.startswith("vlsa") for x in parts) and CONTEST.lr_scale("vlsa.scale") == 10
    full = {name.split(".")[0] for name, _ in select_trained(model, find_stage(TRAIN))}
    assert full == {"sam", "projection", "vlsa"} and type(TRAIN) is not ContestConfig and TRAIN.vlsa_lr_scale == 10


def test_same_contest_same_numbers(start, samples):
    first, second = (contest(["tokens"], start, samples) for _ in range(2))
    assert [row["per_image"] for row in first] == [row["per_image"] for row in second]


def test_held_out_images_are_two_of_the_split_val(start, tmp_path):
    folder = tmp_path / "c"
    make_images(folder, 5)
    (folder / "images.csv").write_text("file,split\n0.png,train\n1.png,val\n2.png,val\n3.png,val\n4.png,val\n")
    corpus = Corpus(folder)
    mixture = Mixture([(corpus, "train")])
    chosen = [corpus.read(corpus.records[i]) for i in (2, 4)]  # evenly spaced
    same = dict(mixture=mixture, folder=tmp_path / "kept")
    assert contest("none", start, None, **same) == contest("none", start, chosen, **same)  # the finished run, scored again


def test_fast_mode_is_a_few_steps_of_the_debug_model(monkeypatch):
    monkeypatch.setenv("ULLSAM_FAST", "1")
    rows = compare_vlsa(["none"], steps=500, seeds=[0], progress=False)
    assert rows[0]["steps"] == FAST.steps and rows[0]["model"] == "debug"


MISTAKES = {
    "unknown": (["paper", "mine"], {}, "no VLSA variant 'mine'; name some of none, paper"),
    "no names": ([], {}, "names is empty; name some of none, paper"),
    "no form of a name": ([("film", "before")], {}, r"\('film', 'before'\) is no variant; write 'film', \('film', {'reads'"),
    "a dictionary without a name": ([{"reads": "before"}], {}, "is no variant; write 'film'"),
    "an unknown option": (
        [("film", {"colour": 1})],
        {},
        "'film' cannot be built with {'colour': 1} .*colour.*; leave them out",
    ),
    "no seed": (["paper"], {"seeds": []}, "seeds or prompts is empty"),
    "no prompts": (["paper"], {"prompts": []}, "seeds or prompts is empty"),
    "no language model": (["paper"], {"model": {"llm": None, "vlsa": "none"}}, "no language model"),
    "no object": (["paper"], {"held_out": []}, "No held-out image has an object; give images with instance masks"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_found_before_training(start, case, monkeypatch):
    names, options, sentence = MISTAKES[case]
    monkeypatch.setattr(compare, "fit", lambda *_: pytest.fail("trained"))
    if isinstance(options.get("model"), dict):
        options = {"model": ULLSAM.from_preset("debug", **options["model"])}
    with pytest.raises(InputError, match=sentence):
        compare_vlsa(names, **({"model": start, "progress": False} | options))


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
    monkeypatch.setattr(compare, "score_samples", lambda model, x, *a: scored.extend(x) or score_samples(model, x, *a))
    contest("none", start, None)
    assert scored and all(seed_of(sample) >= UNSEEN for sample in scored)
    drawn = [generate("fluorescence_nuclei", seed, 64).image for seed in (*range(20), UNSEEN - 1)]
    assert not any(np.array_equal(sample.image, image) for sample in scored for image in drawn)
