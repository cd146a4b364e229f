import json

import pytest

from ullsam.lab import words
from ullsam.lab.words import Budget, WordsExperiment, draw, mean_rows, summarise, table
from ullsam.model import ULLSAM

TOY = Budget(1, 2, None, None, (4, 4, 4), arms=("none", "last_word"))


def row(scene, task, presence, **dice):
    return {"scene": scene, "source": "s", "task": task, "key": "nucleus", "presence_right": presence, **dice}


def run(*rows, val=()):
    return {"val": list(val), "test": list(rows)}


def test_means_are_over_images_then_seeds_and_differences_are_paired():
    val = [row("a/1", "click", p / 100) for p in range(100)]
    none = run(row("a/1", "click", 0.9, right=0.5), row("a/2", "click", 0.9, right=0.3), val=val)
    first = run(row("a/1", "click", 0.9, right=1.0, other=0.2), row("a/1", "click", 0.9, right=0.8), val=val)
    second = run(row("a/2", "click", 0.9, right=0.5), row("a/3", "absent", 0.01, right=1.0), val=val)
    found = summarise({"none": [none], "last_word": [first, second]})
    ours = next(r for r in found["rows"] if r["arm"] == "last_word")
    assert ours["right"]["mean"] == pytest.approx((0.9 + 0.5) / 2) and ours["right"]["n"] == 2
    assert ours["other"]["mean"] == 0.2 and "held_out" not in ours
    (difference,) = found["differences"]
    assert difference["difference"]["mean"] == pytest.approx((0.4 + 0.2) / 2)


def test_the_threshold_comes_from_validation_images():
    val = [row("a/1", "click", p / 100) for p in range(101)]  # 5 % lie below 0.05
    test = [row("a/2", "click", 0.04), row("a/2", "click", 0.6), row("a/2", "absent", 0.01), row("a/2", "absent", 0.7)]
    (presence,) = summarise({"x": [run(*(r | {"right": 1.0} for r in test), val=val)]})["presence"]
    assert presence == {"arm": "x", "threshold": pytest.approx(0.05), "refused": 0.5, "false_refusals": 0.5}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    experiment = WordsExperiment(ULLSAM.from_preset("debug"), TOY, folder, None, log=lambda text: None)
    return folder, experiment.run()


def test_a_stopped_run_goes_on(result, monkeypatch):
    folder, first = result
    monkeypatch.setattr(words, "train_arm", lambda *a: pytest.fail("trained again"))
    again = WordsExperiment(ULLSAM.from_preset("debug"), TOY, folder, None).run()
    assert again == first and sorted(p.name for p in folder.iterdir()) == ["last_word-0.json", "none-0.json"]
    assert {"arm", "seed", "seconds", "log", "val", "test"} == set(json.loads((folder / "none-0.json").read_text()))


def test_tables_and_figure_hold_every_arm(result):
    rows = mean_rows(result[1])
    assert [(r["arm"], r["asked by"]) for r in rows][::2] == [(a, "one click and words") for a in TOY.arms]
    assert "last_word" in table(result[1]) and "words never trained" in table(result[1])
    axes = draw(result[1]).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == list(TOY.arms)


def test_every_structure_has_a_vector_in_the_control():
    assert len(words.KNOWN) == len({text for row in words.KNOWN for text in row} and words.KNOWN)
    assert all(len(texts) > 10 for texts in words.KNOWN)
