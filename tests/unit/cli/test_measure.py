"""The commands that measure a model: what they write, print, and say about wrong input."""

import json

import pytest

from ullsam.cli import main
from ullsam.evaluation.protocol import SCORES
from ullsam.model import ULLSAM

KEYS = {
    "command",
    "machine",
    "model",
    "data",
    "split",
    "points",
    "vlk",
    "seed",
    "n_images",
    "n_instances",
    *SCORES,
    "seconds",
    "per_image",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    ULLSAM.from_preset("debug").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def data(tmp_path, make_corpus):
    """Two corpora of two images; only the first has a table and facts."""
    for name in ("first", "second"):
        make_corpus(tmp_path / name, 2)
    (tmp_path / "first" / "images.csv").write_text("file,split\n0.png,train\n1.png,test\n")
    (tmp_path / "first" / "meta.json").write_text('{"name": "n", "modality": "fluorescence", "structure": "nucleus"}')
    return [str(tmp_path / "first"), str(tmp_path / "second")]


def test_evaluate_one_folder(model, data, tmp_path, capsys):
    out = tmp_path / "out" / "results.json"
    assert main(["evaluate", "--model", model, "--data", data[0], "--split", "test", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert set(result) == KEYS
    assert (result["model"], result["data"], result["split"], result["n_images"]) == ("small", "first", "test", 1)
    folder = f"{tmp_path.name}/first"
    assert result["command"] == f"python -m ullsam evaluate --model small --data {folder} --split test --out results.json"
    assert set(result["machine"]) == {"cores", "torch", "threads"}
    assert str(tmp_path) not in out.read_text()
    printed = capsys.readouterr()
    assert "dice_instance" in printed.out and "first" in printed.out
    assert "image" in printed.err  # the bar


def test_evaluate_several_folders(model, data, tmp_path, capsys):
    out = tmp_path / "results.json"
    options = ["--model", model, "--no-vlk", "--points", "2", "0", "--out", str(out)]
    assert main(["evaluate", "--data", *data, *options]) == 0
    result = json.loads(out.read_text())
    assert set(result) == {"command", "machine", "results", "mean"}
    assert [(r["data"], r["vlk"], r["points"], r["model"]) for r in result["results"]] == [
        ("first", False, [2, 0], "small"),
        ("second", False, [2, 0], "small"),
    ]
    for name in SCORES:
        assert result["mean"][name] == pytest.approx(sum(r[name] for r in result["results"]) / 2)
    assert "mean" in capsys.readouterr().out


def test_evaluate_with_boxes(model, data, tmp_path):
    out = tmp_path / "results.json"
    assert main(["evaluate", "--model", model, "--data", data[0], "--box", "--limit", "1", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["points"] == "box"


def test_evaluate_words(model, data, tmp_path, capsys):
    out = tmp_path / "words.json"
    arguments = ["evaluate-words", "--model", model, "--data", *data, "--limit", "1", "--out", str(out)]
    assert main(arguments) == 0
    assert [r["condition"] for r in json.loads(out.read_text())["results"]] == ["image", "image"]
    assert main([*arguments, "--shuffled"]) == 0
    assert [r["condition"] for r in json.loads(out.read_text())["results"]] == ["shuffled", "shuffled"]
    assert "modality" in capsys.readouterr().out


def test_describe_prints_one_line_per_image(model, data, capsys):
    images = [f"{data[0]}/images/{i}.png" for i in range(2)]
    assert main(["describe", *images, "--model", model, "--question", "What is this?"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0].rstrip(":") for line in lines] == images


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evaluate", "--data", "{0}/images", "--out", "{0}/r.json"], "has no folder images/"),
        (["evaluate", "--data", "{0}", "--split", "val", "--out", "{0}/r.json"], "no split 'val'"),
        (["evaluate", "--data", "{0}", "--points", "0", "3", "--out", "{0}/r.json"], "points is"),
        (["evaluate", "--data", "{0}", "--out", "{0}"], "is a folder; name a file"),
        (["evaluate-words", "--data", "{0}", "--shuffled", "--out", "{0}/r.json"], "at least two folders"),
        (["describe", "{0}/none.png"], "none.png"),
    ],
)
def test_wrong_input_is_one_sentence(model, data, capsys, arguments, sentence):
    words = [word.format(data[0]) for word in arguments] + ["--model", model]
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ullsam: ") and sentence in error


def test_unknown_model(data, tmp_path, capsys):
    assert main(["evaluate", "--model", "huge", "--data", data[0], "--out", str(tmp_path / "r.json")]) == 2
    assert "tiny or usam-tiny" in capsys.readouterr().err
