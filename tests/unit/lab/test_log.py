"""The lab log: a line per run, appended."""

import json

import pytest

import ullsam
from ullsam import ULLSAM, InputError, Mixture, TrainConfig, fit
from ullsam.cli import main
from ullsam.data.corpus import Corpus
from ullsam.lab.log import log_run


@pytest.fixture
def corpus(tmp_path, make_corpus):
    folder = make_corpus(tmp_path / "cells", 2, "{:04d}.png")
    (folder / "images.csv").write_text("file,source_id,split\n0000.png,a,train\n0001.png,b,val\n")
    return Corpus(folder)


def test_a_run_gets_a_line_with_its_settings_cost_and_scores(tmp_path, corpus):
    config = TrainConfig(steps=2, batch_size=1, warmup=1, instances=2, lr=5e-4)
    model = ULLSAM.from_preset("debug", llm=None, vlsa="none")
    fit(model, config, Mixture([], ["fluorescence_nuclei"], 1.0, synthetic_size=64), tmp_path / "first", progress=False)
    log = tmp_path / "log.jsonl"
    line = log_run(tmp_path / "first", "half the rate", [corpus], log)
    words = ["log-run", str(tmp_path / "first"), "--note", "once more", "--limit", "1", "--out", str(log)]
    (tmp_path / "data" / "in_domain").mkdir(parents=True)
    corpus.folder.rename(tmp_path / "data" / "in_domain" / "cells")
    assert main([*words, "--data", str(tmp_path / "data")]) == 0
    corpus = Corpus(tmp_path / "data" / "in_domain" / "cells")
    lines = [json.loads(text) for text in log.read_text().splitlines()]
    assert lines[0] == line and lines[1]["note"] == "once more" and lines[1]["dice"] == line["dice"]
    assert line["settings"] == {"steps": 2, "batch_size": 1, "lr": 5e-4, "warmup": 1, "instances": 2}
    assert (line["run"], line["steps"], line["images"]) == ("first", 2, 1)
    expected = ullsam.evaluate(ullsam.Predictor(model), corpus, "val")
    assert line["dice"] == pytest.approx(expected["dice_instance"], abs=1e-4) and 0 <= line["dice_one_click"] <= 1


def test_no_run_no_line(tmp_path, corpus):
    with pytest.raises(InputError, match="no training run in"):
        log_run(tmp_path, "nothing", [corpus], tmp_path / "log.jsonl")
    assert not (tmp_path / "log.jsonl").exists()
