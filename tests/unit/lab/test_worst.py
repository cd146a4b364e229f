"""The picture of worst cases shows the images and objects with the lowest measured Dice."""

import numpy as np
import pytest
from PIL import Image

from ullsam import ULLSAM, Corpus, InputError, Predictor, evaluate
from ullsam.cli import main
from ullsam.lab.worst import worst_case, worst_cases


@pytest.fixture
def corpus(tmp_path, make_corpus):
    return Corpus(make_corpus(tmp_path / "cells", 3, "{:04d}.png"))


def test_the_worst_image_and_object_are_those_of_the_measurement(corpus):
    predictor = Predictor(ULLSAM.from_preset("debug"))
    result = evaluate(predictor, corpus, points=(1, 1), seed=4)
    shown = worst_case(predictor, corpus, result)
    row = min(result["per_image"], key=lambda row: row["dice_instance"])
    assert shown.dices[0].mean() == pytest.approx(row["dice_instance"])
    assert shown.dices[0][shown.index] == shown.dices[0].min()
    wanted = next(r for r in corpus.records if r.file == row["file"])
    assert np.array_equal(shown.sample.labels, corpus.read(wanted).labels)


def test_a_folder_that_was_not_measured_is_named(corpus):
    with pytest.raises(InputError, match="do not tell of cells"):
        worst_cases(Predictor(ULLSAM.from_preset("debug")), [corpus], {"results": []})


def test_from_the_command_line(corpus, tmp_path, capsys):
    model, results, out = tmp_path / "model", tmp_path / "r.json", tmp_path / "worst.png"
    ULLSAM.from_preset("debug").save_pretrained(model)
    data = ["--model", str(model), "--data", str(corpus.folder)]
    assert main(["worst", *data, "--results", str(results), "--out", str(out)]) != 0
    assert "There is no" in capsys.readouterr().err
    assert not main(["evaluate", *data, "--out", str(results)])
    assert not main(["worst", *data, "--results", str(results), "--out", str(out)])
    assert Image.open(out).size[0] > 100
