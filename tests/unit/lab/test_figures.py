"""Pictures of the reproduced tables, and of worst cases: from results and arms of the debug preset."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ullsam import ULLSAM, Corpus, InputError, Predictor, evaluate
from ullsam.cli import main
from ullsam.data.synthetic import STYLES
from ullsam.lab import replication as r
from ullsam.lab.arms import TABLES
from ullsam.lab.figures import Example, choose, grid, worst_case, worst_cases, write_figures, write_png
from ullsam.lab.verdicts import Answers
from ullsam.plots import Picture

SHORT = r.Budget(steps=1, caption_steps=1, batch_size=1, seeds=(0,), images=2, objects=2)
ANSWERS = [
    Answers("random choice", (0.24,) * 4, (0.2, 0.3), 0.25),
    Answers("uLLSAM, its image", (0.4,) * 4, (0.35, 0.45), 0.25),
    Answers("uLLSAM, no image", (0.3,) * 4, (0.25, 0.35), 0.25),
]


@pytest.fixture
def few_styles(monkeypatch):
    histology = next(style for style in STYLES if STYLES[style].meta["domain"] == "histopathology")
    chosen = ("fluorescence_nuclei", "em_mitochondria", histology)
    monkeypatch.setattr(r, "STYLES", {style: STYLES[style] for style in chosen})


@pytest.fixture
def corpus(tmp_path, make_corpus):
    return Corpus(make_corpus(tmp_path / "cells", 3, "{:04d}.png"))


def test_each_type_of_figure_is_written(few_styles, tmp_path):
    job = r.Reproduction(SHORT, tmp_path / "runs", tmp_path / "out.json", start=ULLSAM.from_preset("debug"))
    names = ["table3", "fig3", "fig4", "table6"]
    job.run([name for name in names if name != "fig3"], progress=False)
    same = job.results["rows"][TABLES["table3"].rows[0].key]
    job.results["rows"] |= {row.key: same for row in TABLES["fig3"].rows}
    write_figures(job, [*names, "table1"], tmp_path / "figures", ANSWERS)
    found = {path.name: path for path in (tmp_path / "figures").iterdir()}
    assert set(found) == {"table3.png", "fig3.png", "fig4_median.png", "fig4_worst.png", "table6.png"}
    assert all(path.stat().st_size < 300_000 for path in found.values())


def test_images_of_a_grid_are_chosen_by_rule(few_styles, tmp_path):
    job = r.Reproduction(SHORT, tmp_path / "runs", tmp_path / "out.json", start=ULLSAM.from_preset("debug"))
    row = TABLES["fig4"].rows[-1]
    with pytest.raises(InputError, match="was not measured"):
        grid(job, "fig4")
    job.results["images"]["in-domain"] = [["a", "LM", f"a/{i}"] for i in range(3)] + [["b", "EM", "b/0"]]
    job.results["rows"][row.key] = {"0": {"dice": [0.9, 0.1, 0.4, 0.3]}, "1": {"dice": [0.9, 0.3, 0.4, 0.3]}}
    assert choose(job.results, row, "median") == {"a": "a/2", "b": "b/0"}
    assert choose(job.results, row, "worst") == {"a": "a/1", "b": "b/0"}


def test_the_command_measures_draws_and_tells(few_styles, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ULLSAM_FAST", "1")
    monkeypatch.setitem(r.BUDGETS, "smoke", SHORT)
    places = [f"--{name}={tmp_path / name}" for name in ("out", "results", "figures", "questions")]
    assert main(["reproduce", "fig6", "--synthetic", *places]) == 0
    table = (tmp_path / "figures" / "tables.md").read_text()
    assert TABLES["fig6"].title in table and table in capsys.readouterr().out
    assert json.loads((tmp_path / "results").read_text())["command"] == (
        "python -m ullsam reproduce fig6 --budget smoke --synthetic"
    )
    assert (tmp_path / "figures" / "fig6.png").is_file()
    assert main(["reproduce", "table6", "--synthetic", *places]) == 2
    assert "Table 6" in capsys.readouterr().err


def test_another_sam_may_be_the_start(monkeypatch, tmp_path):
    starts = []

    def caught(budget, folder, path, data, start, command):
        starts.append(start.sam.state_dict())
        raise InputError("far enough")

    monkeypatch.setenv("ULLSAM_FAST", "1")
    monkeypatch.setattr(r, "Reproduction", caught)
    other = ULLSAM.from_preset("debug", seed=3)
    other.save_pretrained(tmp_path)
    for sam in ([], ["--sam", str(tmp_path)]):
        assert main(["reproduce", "table3", "--synthetic", *sam]) == 2
    plain, start = starts
    assert all(torch.equal(start[name], value) for name, value in other.sam.state_dict().items())
    assert not all(torch.equal(plain[name], value) for name, value in start.items())


def test_a_picture_is_made_to_fit(tmp_path):
    figure = Picture(figsize=(2, 2))
    figure.subplots().imshow(np.random.default_rng(0).random((100, 100, 3)))
    small = write_png(figure, tmp_path / "a.png", 9_000)
    assert small.stat().st_size < 9_000 and Image.open(small).format == "PNG"
    with pytest.raises(InputError, match="does not fit 100 bytes"):
        write_png(figure, tmp_path / "b.png", 100)


def test_the_worst_image_and_object_are_those_of_the_measurement(corpus):
    predictor = Predictor(ULLSAM.from_preset("debug"))
    result = evaluate(predictor, corpus, points=(1, 1), seed=4)
    example = worst_case(predictor, corpus, result)
    row = min(result["per_image"], key=lambda row: row["dice_instance"])
    assert example.dices[0].mean() == pytest.approx(row["dice_instance"])
    assert example.dices[0][example.index] == example.dices[0].min()
    wanted = next(r for r in corpus.records if r.file == row["file"])
    assert np.array_equal(example.sample.labels, corpus.read(wanted).labels)


def test_a_folder_that_was_not_measured_is_named(corpus):
    with pytest.raises(InputError, match="tell of 0 folders called cells, not of 1"):
        worst_cases(Predictor(ULLSAM.from_preset("debug")), [corpus], {"results": []})


def test_folders_of_one_name_have_their_own_results(make_corpus, tmp_path, monkeypatch):
    folders = [Corpus(make_corpus(tmp_path / part / "test", 2)) for part in "ab"]
    predictor = Predictor(ULLSAM.from_preset("debug"))
    results = [evaluate(predictor, corpus, points=(1, 0)) for corpus in folders]
    for result, low in zip(results, ("0.png", "1.png"), strict=True):
        for row in result["per_image"]:
            row["dice_instance"] = 0.1 if row["file"] == low else 0.9
    found = []
    monkeypatch.setattr(Example, "draw", lambda example, panels: found.append(example.sample.meta["file"]))
    worst_cases(predictor, folders, {"results": results})
    assert found == ["0.png", "1.png"]
    with pytest.raises(InputError, match="2 folders called test, not of 1"):
        worst_cases(predictor, folders[1:], {"results": results})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda result: result | {"points": "box"}, "are not what .* writes with points"),
        (lambda result: result | {"per_image": []}, "are not what .* writes"),
        (lambda result: result | {"per_image": None}, "are not what .* writes"),
        (lambda result: {"data": result["data"]}, "are not what .* writes"),
        (lambda result: result | {"per_image": [{"file": "gone.png", "dice_instance": 0.1}]}, "has no image gone.png"),
        (lambda result: {"results": 3}, "tell of 0 folders"),
        (lambda result: {"results": [3]}, "tell of 0 folders"),
        (lambda result: {"name": 1}, "tell of 0 folders"),
    ],
)
def test_results_that_do_not_fit_are_one_sentence(corpus, change, words):
    predictor = Predictor(ULLSAM.from_preset("debug"))
    with pytest.raises(InputError, match=words):
        worst_cases(predictor, [corpus], change(evaluate(predictor, corpus)))


def test_worst_cases_from_the_command_line(corpus, tmp_path, capsys):
    model, results, out = tmp_path / "model", tmp_path / "r.json", tmp_path / "worst.png"
    ULLSAM.from_preset("debug").save_pretrained(model)
    data = ["--model", str(model), "--data", str(corpus.folder)]
    assert main(["worst", *data, "--results", str(results), "--out", str(out)]) != 0
    assert "There is no" in capsys.readouterr().err
    assert not main(["evaluate", *data, "--out", str(results)])
    assert not main(["worst", *data, "--results", str(results), "--out", str(out)])
    assert Image.open(out).size[0] > 100
