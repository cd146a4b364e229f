"""The demo, from the command line to its files, with a model of random weights."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import ullsam
from ullsam.cli import main
from ullsam.cli.demo import draw, report, scenes

NAMES = ("cell", "ihc", "synthetic")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    ullsam.ULLSAM.from_preset("debug").save_pretrained(folder)
    return folder


def test_scenes_are_square_and_their_clicks_lie_on_them():
    for scene in scenes():
        h, w = scene.image.shape[:2]
        assert h == w and scene.points.shape[::2] == (len(scene.points), 2)
        assert scene.point_labels.shape == scene.points.shape[:2]
        assert (scene.points >= 0).all() and (scene.points <= w - 1).all()


def test_the_cells_click_is_on_the_bright_cell():
    cell = scenes()[0]
    x, y = cell.points[0, 0].astype(int)
    assert cell.image[y, x] > np.percentile(cell.image, 95)


def test_clicks_in_the_tissue_are_on_blue_nuclei_not_on_brown_membranes():
    tissue = scenes()[1]
    for x, y in tissue.points[:, 0].astype(int):
        red, _, blue = tissue.image[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).astype(float).mean(0)
        assert blue > red - 10


def test_synthetic_points_are_inside_and_outside_their_instances():
    scene = scenes()[2]
    assert set(scene.ids) == set(np.unique(scene.truth)) - {0}
    for i, points, kinds in zip(scene.ids, scene.points.astype(int), scene.point_labels, strict=True):
        assert ((scene.truth[points[:, 1], points[:, 0]] == i) == (kinds == 1)).all()


def test_demo_writes_what_it_prints(model_folder, tmp_path, capsys):
    out = tmp_path / "new" / "results"
    assert main(["demo", "--out", str(out), "--model", str(model_folder)]) == 0
    printed = capsys.readouterr().out
    files = [out / "demo.png", *(out / f"{name}_labels.tif" for name in NAMES)]
    assert all(f"Wrote {file}" in printed for file in files)
    assert sorted(out.iterdir()) == sorted(files)
    assert "Ready after" in printed and "One click takes" in printed and printed.count("description: ") == 3
    assert printed.count("Dice 0.") == printed.count("SA(0.5) 0.") == 2  # with and without VLK, where truth is known
    for file, scene in zip(files[1:], scenes(), strict=True):
        assert ullsam.read_labels(file).shape == scene.image.shape[:2]
    assert Image.open(files[0]).width == 990


def test_a_model_without_language_model_gives_one_way_and_no_words(tmp_path, capsys):
    ullsam.ULLSAM.from_preset("debug", llm=None, vlsa="none").save_pretrained(tmp_path / "plain")
    assert main(["demo", "--out", str(tmp_path / "out"), "--model", str(tmp_path / "plain")]) == 0
    printed = capsys.readouterr().out
    assert "plain SAM: Dice" in printed and "VLK" not in printed and "description" not in printed


@pytest.mark.parametrize("model", ["no/such/folder", "tiyn"])
def test_a_missing_model_is_one_sentence(model, tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "out"), "--model", model]) == 2
    assert not (tmp_path / "out").exists()
    error = capsys.readouterr().err
    assert error.startswith("ullsam: ") and model.split("/")[-1] in error and error.count("\n") == 1


def test_an_output_folder_that_is_a_file_is_one_sentence(model_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file"), "--model", str(model_folder)]) == 2
    assert "--out" in capsys.readouterr().err


def test_the_description_is_reported_unchanged_and_drawn_without_formulas():
    scene = scenes()[2]
    words = "Nuclei, $ 5 % of {them} \x07\nround ܘ."
    masks = {"with VLK": scene.truth == scene.ids[:, None, None]}
    scene = replace(scene, masks=masks, scores={"with VLK": "Dice 1.00"}, description=words)
    assert f'"{words}"' in report(scene)[-1]
    figure = draw([scene])
    figure.canvas.draw()
    assert "Nuclei, $ 5 % of {them} ? round ?." in figure.texts[0].get_text()
    assert [ax.get_title() for ax in figure.axes] == ["image and clicks", "with VLK: Dice 1.00"]
