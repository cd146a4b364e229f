"""The paper's tables at tiny scale: arms differ in one thing, nothing is measured twice, claims are judged by intervals."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ullsam import ULLSAM, InputError
from ullsam.data.synthetic import STYLES
from ullsam.lab import reproduce as r
from ullsam.lab.reproduce_report import difference, interval, markdown, origin, scores, summary, verdicts
from ullsam.lab.reproduce_tables import ARMS, OURS, TABLES

HISTOLOGY = next(style for style in STYLES if r.style_domain(style) == "histopathology")
SHORT = r.Budget(steps=1, caption_steps=1, batch_size=1, seeds=(0,), images=1, objects=2)


@pytest.fixture
def job(tmp_path, monkeypatch):
    chosen = ("fluorescence_nuclei", "em_mitochondria", HISTOLOGY)
    monkeypatch.setattr(r, "STYLES", {style: STYLES[style] for style in chosen})
    return r.Reproduction(SHORT, tmp_path / "runs", tmp_path / "out.json", start=ULLSAM.from_preset("debug"))


def again(job, budget=SHORT, start=None):
    return r.Reproduction(budget, job.folder, job.path, start=start or job.start)


def test_every_claim_and_arm_of_the_tables_exists():
    for table in TABLES.values():
        labels = [row.label for row in table.rows]
        assert len(set(labels)) == len(labels) and {x for claim in table.claims for x in claim.labels} <= set(labels)
        assert all(row.arm in ARMS for row in table.rows)
    papers = [row.paper for table in TABLES.values() for row in table.rows if row.paper]
    assert len(papers) == 17 and papers.count(OURS) == 5  # as printed in the paper's tables 1 to 5
    assert {arm for arm in ARMS} == {row.arm for table in TABLES.values() for row in table.rows}


def test_a_table_is_measured_once_and_goes_on(job):
    first = json.loads(json.dumps(job.run(["fig5"], progress=False)))
    assert len(first["rows"]) == 3 and len(first["images"]["in-domain"]) == 2  # one image of two styles
    assert all(len(seeds["0"]["dice"]) == 2 for seeds in first["rows"].values())
    second = again(job)
    second.train = None  # would fail if called
    assert json.loads(json.dumps(second.run(["fig5", "fig4", "table6"], progress=False))) == first
    text = markdown(first)
    assert "Figure 5" in text and "uLLSAM without VLK" in text and "Table 1" not in text


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


def test_arms_differ_in_what_their_name_says(job):
    usam, full, fresh = (job.train(name, 0, progress=False) for name in ("usam", "full", "no caption stages"))
    assert usam.vlsa is None and full.vlsa is not None
    assert full.llm is job.start.llm and fresh.llm is not job.start.llm
    assert job._mixture(ARMS["EM specialist"]).synthetic == ["em_mitochondria"]
    assert HISTOLOGY not in job._mixture(ARMS["full"]).synthetic
    assert {t.role for t in job.tests() if t.domain in r.DOMAINS} == {"in-domain"}
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
        r.Reproduction("big", ".", "x.json", start=job.start)
    with pytest.raises(InputError, match="--seeds 0: give 1 or more"):
        r.budget_of("class", 0)


def test_a_number_of_seeds_takes_the_place_of_the_budgets():
    assert r.budget_of("class").seeds == (0,) and r.budget_of("class", 3).seeds == (0, 1, 2)
    assert replace(r.budget_of("class", 3), seeds=(0,)) == r.BUDGETS["class"]


def results(rows, domain="LM", sets=("a",)):
    """Results of in-domain rows: key -> (seeds, images) Dice values, SA the same."""
    count = len(next(iter(rows.values()))[0]) // len(sets)
    images = [[name, domain, f"{name}/{i}"] for name in sets for i in range(count)]
    found = {key: {str(i): {"dice": list(v), "sa": list(v)} for i, v in enumerate(seeds)} for key, seeds in rows.items()}
    return {"images": {"in-domain": images}, "rows": found, "seconds": {}}


def test_claims_are_judged_by_the_interval_over_images():
    table, rng = TABLES["table2"], np.random.default_rng(0)
    alone, _, ours = (row.key for row in table.rows)
    low, noise = rng.uniform(0.4, 0.6, 40), rng.normal(0, 0.02, 40)
    for shift, word in ((0.1, "agrees"), (-0.1, "disagrees"), (0.0, "cannot tell")):
        measured = results({alone: [low], ours: [low + shift + noise - noise.mean()]})
        (verdict,) = verdicts(table, measured)
        assert verdict.word == word and verdict.ours == pytest.approx(shift, abs=1e-6)
        assert verdict.paper == pytest.approx(0.004) and verdict.low < shift < verdict.high
        assert word.split()[-1] in summary(table, measured).lower() and "in the paper +0.004" in verdict.sentence


def test_where_the_margin_comes_from_is_told_apart():
    one, sbr, ours = (row.key for row in TABLES["table3"].rows)
    measured = results({one: [[0.5] * 6], sbr: [[0.57] * 6], ours: [[0.58] * 6]})
    text = origin(measured)
    assert "uLLSAM is +0.080" in text and "+0.070 (+0.070 to +0.070) comes with SBR's points" in text and "+0.010" in text
    assert text in markdown(measured) and "not compared in the paper" in markdown(measured)
    assert origin(results({one: [[0.5]]})) == ""


def test_rows_of_one_domain_take_its_sets_only():
    row = next(row for row in TABLES["fig3"].rows if row.images == "EM")
    measured = results({row.key: [[0.5, 0.7], [0.6, 0.8]]}, sets=("a", "b"))
    measured["images"]["in-domain"][1][1] = "EM"
    assert list(scores(row, measured)) == ["b"] and scores(row, measured)["b"].shape == (2, 1, 2)
    assert scores(row, measured)["b"][:, 0, 0].tolist() == [0.7, 0.8]


def test_difference_pairs_images():
    rng = np.random.default_rng(0)
    a = {"s": rng.random((1, 5, 2))}
    b = {"s": a["s"] - 0.1}
    assert difference(a, b) == pytest.approx((0.1, 0.1, 0.1))
    low, high = interval(a)[:, 0]
    assert low < a["s"][..., 0].mean() < high
