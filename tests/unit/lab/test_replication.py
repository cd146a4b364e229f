"""The paper's tables at tiny scale: arms differ in one thing, nothing is measured twice, an interruption changes nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ullsam import ULLSAM, InputError
from ullsam.data.synthetic import STYLES
from ullsam.lab import replication as r
from ullsam.lab.arms import ARMS, DOMAINS, TABLES

HISTOLOGY = next(style for style in STYLES if STYLES[style].meta["domain"] == "histopathology")
SHORT = r.Budget(steps=1, caption_steps=1, batch_size=1, seeds=(0,), images=1, objects=2)


@pytest.fixture
def job(tmp_path, monkeypatch):
    chosen = ("fluorescence_nuclei", "em_mitochondria", HISTOLOGY)
    monkeypatch.setattr(r, "STYLES", {style: STYLES[style] for style in chosen})
    return r.Reproduction(SHORT, tmp_path / "runs", tmp_path / "out.json", start=ULLSAM.from_preset("debug"))


def again(job, budget=SHORT, start=None):
    return r.Reproduction(budget, job.folder, job.path, start=start or job.start)


def test_a_table_is_measured_once_and_goes_on(job):
    first = json.loads(json.dumps(job.run(["fig5"], progress=False)))
    assert len(first["rows"]) == 3 and len(first["images"]["in-domain"]) == 2  # one image of two styles
    assert all(len(seeds["0"]["dice"]) == 2 for seeds in first["rows"].values())
    second = again(job)
    second.train = None  # would fail if called
    assert json.loads(json.dumps(second.run(["fig5", "fig4", "table6"], progress=False))) == first


def test_the_results_say_how_they_were_made_and_other_conditions_are_refused(job):
    job.run(["table4"], progress=False)
    found = json.loads(job.path.read_text())
    assert {"command", "machine", "conditions", "images", "rows", "seconds"} == set(found)
    assert found["conditions"]["start"] == {"name": "debug", "sha256": r.fingerprint(job.start)}
    assert set(found["seconds"]) == {"usam", "full", "usam 1 point", "1 point"}
    other = ULLSAM.from_preset("debug", seed=1)
    assert r.fingerprint(other) != r.fingerprint(job.start)
    for changed in ({"budget": replace(SHORT, steps=2)}, {"budget": replace(SHORT, objects=3)}, {"start": other}):
        with pytest.raises(InputError, match="measured under other conditions"):
            again(job, **changed)
    job.path.unlink()
    with pytest.raises(InputError, match="trained under other conditions"):
        again(job, start=other).run(["table4"], progress=False)


def test_seeds_may_be_added_later(job):
    first = json.loads(json.dumps(job.run(["table3"], progress=False)))
    more = again(job, replace(SHORT, seeds=(0, 1))).run(["table3"], progress=False)
    for key, seeds in first["rows"].items():
        assert more["rows"][key]["0"] == seeds["0"] and set(more["rows"][key]) == {"0", "1"}


def test_a_finished_arm_is_read_back_as_it_was(job):
    trained = job.train("stage 1", 0, progress=False)
    assert not list(job.folder.rglob("checkpoint.pt"))
    back = again(job).train("stage 1", 0, progress=False).state_dict()
    assert all(torch.equal(value, back[name]) for name, value in trained.state_dict().items())


@pytest.mark.parametrize("arm", ["no caption stages", "stages 1 and 2"])
def test_an_interrupted_arm_ends_with_the_same_weights(job, tmp_path, monkeypatch, arm):
    whole = job.train(arm, 0, progress=False).state_dict()
    other, fit = r.Reproduction(SHORT, tmp_path / "other", tmp_path / "other.json", start=job.start), r.fit

    def killed(model, config, *args):
        if config.stage == 3:
            raise KeyboardInterrupt
        return fit(model, config, *args)

    torch.manual_seed(5)  # whatever ran before, fresh adapters must not depend on it
    monkeypatch.setattr(r, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        other.train(arm, 0, progress=False)
    monkeypatch.setattr(r, "fit", fit)
    torch.manual_seed(6)
    resumed = other.train(arm, 0, progress=False).state_dict()
    assert resumed.keys() == whole.keys() and all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_arms_differ_in_what_their_name_says(job):
    usam, full, fresh = (job.train(name, 0, progress=False) for name in ("usam", "full", "no caption stages"))
    assert usam.vlsa is None and full.vlsa is not None
    assert full.llm is job.start.llm and fresh.llm is not job.start.llm
    assert job._mixture(ARMS["EM specialist"]).synthetic == ["em_mitochondria"]
    assert HISTOLOGY not in job._mixture(ARMS["full"]).synthetic
    assert {t.role for t in job.tests() if t.domain in DOMAINS} == {"in-domain"}
    settings = {name: job._settings(ARMS[name], 3, 0) for name in ("usam", "usam 1 point")}
    assert settings["usam 1 point"] == replace(settings["usam"], prompts=((1, 0),))


def test_rows_measured_together_equal_rows_measured_alone(job):
    model, rows = job.train("full", 0, progress=False), TABLES["table5"].rows
    together = job.measure(model, rows)
    assert together == {key: value for row in rows for key, value in job.measure(model, [row]).items()}
    assert len(together) == 6


def test_objects_are_drawn_by_number():
    labels = np.arange(10).repeat(3).reshape(5, 6)
    few = r.chosen_objects(labels, 4, np.random.default_rng(0))
    assert len(set(few)) == 4 and set(few) <= set(range(1, 10)) and list(few) == sorted(few)
    assert list(r.chosen_objects(labels, 4, np.random.default_rng(0))) == list(few)
    assert list(r.chosen_objects(labels, None, np.random.default_rng(0))) == list(range(1, 10))
    assert len(r.chosen_objects(np.zeros((4, 4), int), 4, np.random.default_rng(0))) == 0


def test_bad_names_get_a_sentence(job):
    with pytest.raises(InputError, match="no table 'table9'"):
        job.run(["table9"], progress=False)
    with pytest.raises(InputError, match="no budget 'big'"):
        r.budget_of("big")
    with pytest.raises(InputError, match="--seeds 0: give 1 or more"):
        r.budget_of("smoke", 0)


def test_a_number_of_seeds_takes_the_place_of_the_budgets():
    assert r.budget_of("smoke").seeds == (0,) and r.budget_of("smoke", 3).seeds == (0, 1, 2)
    assert replace(r.budget_of("smoke", 3), seeds=(0,)) == r.BUDGETS["smoke"]
