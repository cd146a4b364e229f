"""Claims are judged by intervals over images, which are paired; answers to questions by their distance from chance."""

import json

import numpy as np
import pytest

from ullsam import InputError
from ullsam.lab.arms import TABLES
from ullsam.lab.verdicts import better_than_chance, difference, interval, read_answers, scores, summary, verdicts


def results(rows, domain="LM", sets=("a",)):
    """Results of in-domain rows: key -> (seeds, images) Dice values, SA the same."""
    count = len(next(iter(rows.values()))[0]) // len(sets)
    images = [[name, domain, f"{name}/{i}"] for name in sets for i in range(count)]
    found = {key: {str(i): {"dice": list(v), "sa": list(v)} for i, v in enumerate(seeds)} for key, seeds in rows.items()}
    return {"images": {"in-domain": images}, "rows": found, "seconds": {}}


@pytest.mark.parametrize(("shift", "word"), [(0.1, "agrees"), (-0.1, "disagrees"), (0.0, "cannot tell")])
def test_claims_are_judged_by_the_interval_over_images(shift, word):
    table, rng = TABLES["table2"], np.random.default_rng(0)
    alone, _, ours = (row.key for row in table.rows)
    low, noise = rng.uniform(0.4, 0.6, 40), rng.normal(0, 0.02, 40)
    (verdict,) = verdicts(table, results({alone: [low], ours: [low + shift + noise - noise.mean()]}))
    assert verdict.word == word and verdict.ours == pytest.approx(shift, abs=1e-6)
    assert verdict.paper == pytest.approx(0.004) and verdict.low < shift < verdict.high
    assert verdict.finding.endswith(word) and "+0.004" in verdict.finding
    assert "1" in summary([verdict]) and word in summary([verdict])


def test_a_difference_that_is_certain_but_small_tells_nothing():
    alone, _, ours = (row.key for row in TABLES["table2"].rows)
    (verdict,) = verdicts(TABLES["table2"], results({alone: [[0.5] * 6], ours: [[0.504] * 6]}))
    assert verdict.low > 0 and verdict.word == "cannot tell"


def test_what_only_we_ask_is_no_claim_of_the_paper():
    one, sbr, ours = (row.key for row in TABLES["table3"].rows)
    found = verdicts(TABLES["table3"], results({one: [[0.5] * 6], sbr: [[0.57] * 6], ours: [[0.58] * 6]}))
    gaps = {(v.asked, v.better == "uLLSAM", round(v.ours, 3)) for v in found}
    assert gaps == {("paper", True, 0.01), ("us", False, 0.07), ("us", True, 0.08)}  # 0.08 = 0.07 + 0.01
    assert all(v.finding.endswith("better") for v in found if v.asked == "us")
    assert summary(found) == summary([v for v in found if v.asked == "paper"]) and summary(found[1:]) == ""


def test_rows_of_one_domain_take_its_sets_only():
    row = next(row for row in TABLES["fig3"].rows if row.images == "EM")
    measured = results({row.key: [[0.5, 0.7], [0.6, 0.8]]}, sets=("a", "b"))
    measured["images"]["in-domain"][1][1] = "EM"
    assert list(scores(row, measured)) == ["b"] and scores(row, measured)["b"].shape == (2, 1, 2)
    assert scores(row, measured)["b"][:, 0, 0].tolist() == [0.7, 0.8]
    assert interval(scores(row, measured)) == pytest.approx(np.full((2, 2), 0.75))  # one image cannot vary


def test_difference_pairs_images():
    rng = np.random.default_rng(0)
    a = {"s": rng.random((1, 5, 2))}
    b = {"s": a["s"] - 0.1}
    assert difference(a, b) == pytest.approx((0.1, 0.1, 0.1))
    low, high = interval(a)[:, 0]
    assert low < a["s"][..., 0].mean() < high


def test_each_dataset_weighs_the_same_however_many_images_it_has():
    sets = {"large": np.full((1, 90, 2), 0.2), "small": np.full((1, 3, 2), 0.8)}
    assert interval(sets) == pytest.approx(np.full((2, 2), 0.5))


def run(image, accuracy):
    tasks = {str(i): {"letter": letter, "accuracy": accuracy + i / 100} for i, letter in enumerate("VHE")}
    return {"image": image, "accuracy": accuracy, "interval": [accuracy - 0.05, accuracy + 0.05], "chance": 0.25} | {
        "per_task": tasks
    }


@pytest.mark.parametrize(("accuracy", "word"), [(0.4, "agrees"), (0.26, "cannot tell"), (0.1, "disagrees")])
def test_table6_reads_the_answers_and_judges_them(tmp_path, accuracy, word):
    (tmp_path / "microvqa_random.json").write_text(json.dumps(run("own", 0.24)))
    with pytest.raises(InputError, match="python -m ullsam microvqa --model tiny --count 120 --image own none shuffled"):
        read_answers(tmp_path)
    (tmp_path / "microvqa_tiny.json").write_text(json.dumps({"results": [run("none", 0.3), run("own", accuracy)]}))
    chance, none, own = read_answers(tmp_path)
    assert [a.label for a in (chance, none, own)] == ["random choice", "uLLSAM, no image", "uLLSAM, its image"]
    assert own.values == (accuracy, accuracy, accuracy + 0.01, accuracy + 0.02) and own.chance == 0.25
    said = better_than_chance([chance, none, own])
    assert f"{accuracy:.3f}" in said and said.endswith(f"{word}.")
