"""The paper's tables at tiny scale: arms differ in one thing, nothing is measured twice, claims are judged by intervals."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ullsam import ULLSAM, InputError
from ullsam import reproduce as r
from ullsam.data.synthetic import STYLES
from ullsam.reproduce_report import difference, markdown, scores, verdicts

HISTOLOGY = next(style for style in STYLES if r.style_domain(style) == "histopathology")
SHORT = r.Budget(steps=1, caption_steps=1, batch_size=1, seeds=(0,), images=1)


@pytest.fixture
def job(tmp_path, monkeypatch):
    chosen = ("fluorescence_nuclei", "em_mitochondria", HISTOLOGY)
    monkeypatch.setattr(r, "STYLES", {style: STYLES[style] for style in chosen})
    return r.Reproduction(SHORT, tmp_path / "runs", tmp_path / "out.json", start=ULLSAM.from_preset("debug"))


def test_every_claim_and_arm_of_the_tables_exists():
    for table in r.TABLES.values():
        labels = [row.label for row in table.rows]
        assert len(set(labels)) == len(labels) and {x for claim in table.claims for x in claim} <= set(labels)
        assert all(row.arm in r.ARMS for row in table.rows)
    papers = [row.paper for table in r.TABLES.values() for row in table.rows if row.paper]
    assert len(papers) == 17 and papers.count(r.OURS) == 5  # as printed in the paper's tables 1 to 5


def test_a_table_is_measured_once_and_goes_on(job, tmp_path):
    first = json.loads(json.dumps(job.run(["fig5"], progress=False)))
    assert len(first) == 3 and all(len(seeds["0"]) == 2 for seeds in first.values())  # one image of two styles
    again = r.Reproduction(SHORT, tmp_path / "runs", tmp_path / "out.json", start=job.start)
    again.train = None  # would fail if called
    assert json.loads(json.dumps(again.run(["fig5"], progress=False))) == first
    text = markdown(first)
    assert "Figure 5" in text and "uLLSAM without VLK" in text and "Table 1" not in text
    other = replace(SHORT, steps=2)
    with pytest.raises(InputError, match="other conditions"):
        r.Reproduction(other, tmp_path / "runs", tmp_path / "out.json", start=job.start)


def test_arms_differ_in_what_their_name_says(job):
    start = job.start
    usam, full, fresh = (job.train(name, 0, progress=False) for name in ("usam", "full", "no caption stages"))
    assert usam.vlsa is None and full.vlsa is not None
    assert full.llm is start.llm and fresh.llm is not start.llm
    assert job._mixture(r.ARMS["EM specialist"]).synthetic == ["em_mitochondria"]
    assert HISTOLOGY not in job._mixture(r.ARMS["full"]).synthetic
    assert {t.role for t in job.tests() if t.domain in r.DOMAINS} == {"in-domain"}


def test_bad_names_get_a_sentence(job):
    with pytest.raises(InputError, match="no table 'table9'"):
        job.run(["table9"], progress=False)
    with pytest.raises(InputError, match="no budget 'big'"):
        r.Reproduction("big", ".", "x.json", start=job.start)


def rows(values, domain="LM"):
    return [{"set": "a", "domain": domain, "image": str(i), "dice": v, "sa": v} for i, v in enumerate(values)]


def test_claims_are_judged_by_the_interval_over_images():
    table, rng = r.TABLES["table3"], np.random.default_rng(0)
    usam, ours = (row.key for row in table.rows)
    low, noise = rng.uniform(0.4, 0.6, 40), rng.normal(0, 0.02, 40)
    for shift, word in ((0.1, "agrees"), (-0.1, "disagrees"), (0.0, "cannot tell")):
        measured = {usam: {"0": rows(low)}, ours: {"0": rows(low + shift + noise - noise.mean())}}
        (verdict,) = verdicts(table, measured)
        assert verdict.word == word and verdict.ours == pytest.approx(shift, abs=1e-6)
        assert verdict.paper == pytest.approx(0.062) and verdict.low < shift < verdict.high


def test_rows_of_one_domain_take_its_sets_only():
    row = next(row for row in r.TABLES["fig3"].rows if row.images == "EM")
    measured = {row.key: {"0": rows([0.5, 0.7], "LM"), "1": rows([0.5, 0.7], "LM")}}
    for seed in measured[row.key].values():
        seed += [{**image, "set": "b", "domain": "EM"} for image in seed]
    assert list(scores(row, measured)) == ["b"] and scores(row, measured)["b"].shape == (2, 2, 2)


def test_difference_pairs_images():
    a, b = {"s": np.full((1, 5, 2), 0.8)}, {"s": np.full((1, 5, 2), 0.7)}
    assert difference(a, b, np.random.default_rng(0)) == pytest.approx((0.1, 0.1, 0.1))
