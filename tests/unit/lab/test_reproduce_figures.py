"""What `python -m ullsam reproduce` writes: tables, charts and grids, from results and arms of the debug preset."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ullsam import ULLSAM, InputError
from ullsam.cli import main
from ullsam.cli.reproduce import _start, write
from ullsam.data.synthetic import STYLES
from ullsam.lab import reproduce as r
from ullsam.lab.reproduce_figures import write_png
from ullsam.lab.reproduce_grids import choose, grid
from ullsam.lab.reproduce_questions import FILES, markdown, read_answers, verdict
from ullsam.lab.reproduce_tables import TABLES

SHORT = r.Budget(steps=1, caption_steps=1, batch_size=1, seeds=(0,), images=2, objects=2)


@pytest.fixture
def few_styles(monkeypatch):
    histology = next(style for style in STYLES if r.style_domain(style) == "histopathology")
    chosen = ("fluorescence_nuclei", "em_mitochondria", histology)
    monkeypatch.setattr(r, "STYLES", {style: STYLES[style] for style in chosen})


@pytest.fixture
def answers(tmp_path):
    def run(image, accuracy):
        tasks = {str(i): {"letter": letter, "accuracy": accuracy} for i, letter in enumerate("VHE")}
        interval = [accuracy - 0.05, accuracy + 0.05]
        return {"image": image, "accuracy": accuracy, "interval": interval, "chance": 0.25, "per_task": tasks}

    folder = tmp_path / "questions"
    folder.mkdir()
    (folder / FILES["random"]).write_text(json.dumps({"results": [run("own", 0.24)]}))
    (folder / FILES["tiny"]).write_text(json.dumps({"results": [run("own", 0.4), run("none", 0.3), run("shuffled", 0.2)]}))
    return folder


def test_each_kind_of_figure_is_written(few_styles, answers, tmp_path):
    job = r.Reproduction(SHORT, tmp_path / "runs", tmp_path / "out.json", start=ULLSAM.from_preset("debug"))
    names = ["table3", "fig3", "fig4", "table6"]
    job.run([name for name in names if name != "fig3"], progress=False)
    same = job.results["rows"][TABLES["table3"].rows[0].key]
    job.results["rows"] |= {row.key: same for row in TABLES["fig3"].rows}
    write(job, names, tmp_path / "figures", read_answers(answers))
    found = {path.name: path for path in (tmp_path / "figures").iterdir()}
    assert set(found) == {"table3.png", "fig3.png", "fig4_median.png", "fig4_worst.png", "table6.png", "tables.md"}
    assert all(path.stat().st_size < 300_000 for path in found.values())
    text = found["tables.md"].read_text()
    assert all(TABLES[name].title in text for name in ("table3", "fig3", "table6")) and "Figure 4" not in text


def test_images_of_a_grid_are_chosen_by_rule(few_styles, tmp_path):
    job = r.Reproduction(SHORT, tmp_path / "runs", tmp_path / "out.json", start=ULLSAM.from_preset("debug"))
    row = TABLES["fig4"].rows[-1]
    with pytest.raises(InputError, match="was not measured"):
        grid(job, "fig4")
    job.results["images"]["in-domain"] = [["a", "LM", f"a/{i}"] for i in range(3)] + [["b", "EM", "b/0"]]
    job.results["rows"][row.key] = {"0": {"dice": [0.9, 0.1, 0.4, 0.3]}, "1": {"dice": [0.9, 0.3, 0.4, 0.3]}}
    assert choose(job.results, row, "median") == {"a": "a/2", "b": "b/0"}
    assert choose(job.results, row, "worst") == {"a": "a/1", "b": "b/0"}


def test_table6_reads_the_answers_or_says_how_to_make_them(answers):
    found = read_answers(answers)
    assert [a.label for a in found] == ["random choice", "uLLSAM, its image", "uLLSAM, no image", "uLLSAM, another image"]
    assert "0.400 (0.350 to 0.450) against 0.250" in verdict(found) and verdict(found).endswith("agrees.")
    assert "| uLLSAM (paper) | 0.390 | 0.392 | 0.361 | 0.438 |" in markdown(found)
    (answers / FILES["random"]).unlink()
    with pytest.raises(InputError, match="needs microvqa_random.json .*python -m ullsam microvqa --model random"):
        read_answers(answers)


def test_the_command_measures_draws_and_tells(few_styles, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ULLSAM_FAST", "1")
    monkeypatch.setitem(r.BUDGETS, "class", SHORT)
    places = [f"--{name}={tmp_path / name}" for name in ("out", "results", "figures", "questions")]
    assert main(["reproduce", "fig6", "--synthetic", *places]) == 0
    said = capsys.readouterr().out
    assert "Figure 6: out of domain" in said and "in the paper +0.068" in said
    assert json.loads((tmp_path / "results").read_text())["command"] == (
        "python -m ullsam reproduce fig6 --budget class --synthetic"
    )
    assert (tmp_path / "figures" / "fig6.png").is_file()
    assert main(["reproduce", "table6", "--synthetic", *places]) == 2
    assert "Table 6 needs" in capsys.readouterr().err


def test_another_sam_may_be_the_start(monkeypatch, tmp_path):
    monkeypatch.setenv("ULLSAM_FAST", "1")
    other = ULLSAM.from_preset("debug", seed=3)
    other.save_pretrained(tmp_path)
    plain, start = _start(None).sam.state_dict(), _start(str(tmp_path)).sam.state_dict()
    assert all(torch.equal(start[name], value) for name, value in other.sam.state_dict().items())
    assert not all(torch.equal(plain[name], value) for name, value in start.items())


def test_a_picture_is_made_to_fit(tmp_path):
    from ullsam.plots.charts import Picture

    figure = Picture(figsize=(2, 2))
    figure.subplots().imshow(np.random.default_rng(0).random((100, 100, 3)))
    small = write_png(figure, tmp_path / "a.png", 9_000)
    assert small.stat().st_size < 9_000 and Image.open(small).format == "PNG"
    with pytest.raises(InputError, match="does not fit 100 bytes"):
        write_png(figure, tmp_path / "b.png", 100)
