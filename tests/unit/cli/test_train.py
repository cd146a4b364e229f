"""Training from the command line: settings of the presets, stage 1 on image-text pairs, and what it refuses."""

import io
import json
import tarfile
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from ullsam.cli import main, parse
from ullsam.config import PAPER_TRAINING, TrainConfig, preset
from ullsam.model import ULLSAM
from ullsam.objectives import CaptionObjective
from ullsam.tiny import TinyTrainConfig

FACTS = {"image_primary_label": ["Microscopy"], "image_secondary_label": ["light microscopy"], "image_panel_type": "single"}
CAPTIONS = {grey: f"Neurons number {grey}, seen in grey." for grey in (40, 90, 140, 190)}
STAGE1 = ["train", "--preset", "debug", "--stage", "1", "--steps", "2", "--batch-size", "2", "--log-every", "1"]


def write_shard(path):
    """A webdataset shard of one picture, of one grey level, for each of CAPTIONS, in BIOMEDICA's layout."""
    with tarfile.open(path, "w") as tar:
        for grey, caption in CAPTIONS.items():
            picture = cv2.imencode(".png", np.full((48, 40, 3), grey, np.uint8))[1].tobytes()
            facts = json.dumps(FACTS | {"article_accession_id": f"PMC{grey}", "article_license": "CC BY"}).encode()
            for ending, content in (("jpg", picture), ("txt", caption.encode()), ("json", facts)):
                entry = tarfile.TarInfo(f"PMC{grey}_fig.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return str(path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """What prepare-pairs leaves of a shard, at the place where it stands among several datasets."""
    pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("data")
    out = folder / "in_domain" / "biomedica"
    assert main(["prepare-pairs", "--out", str(out), "--images", "4", "--shards", write_shard(folder / "0.tar")]) == 0
    return out


@pytest.mark.parametrize("named", ["the folder itself", "the folder of all datasets"])
def test_stage_1_learns_the_captions_of_pairs(pairs, named, tmp_path, monkeypatch):
    seen, forward = [], CaptionObjective.forward

    def watched(self, batch):
        losses = forward(self, batch)
        seen.append((batch, losses["loss"].detach().clone()))
        return losses

    monkeypatch.setattr(CaptionObjective, "forward", watched)
    data = pairs if named == "the folder itself" else pairs.parents[1]
    assert main([*STAGE1, "--data", str(data), "--out", str(tmp_path)]) == 0
    for batch, _ in seen:  # each caption belongs to its image, whose grey level nothing has changed
        for image, mask, caption in zip(batch["image"], batch["valid_mask"], batch["caption"], strict=True):
            (grey,) = image[mask].unique().tolist()
            assert caption == CAPTIONS[grey] and mask.any(1).all() and not mask.all()  # all of the 48 rows are there
    start = ULLSAM.from_config(preset("debug"), 0)
    batch, loss = seen[0]
    torch.testing.assert_close(CaptionObjective(start, TrainConfig(stage=1))(batch)["loss"], loss)
    log = [json.loads(line) for line in (tmp_path / "debug-stage1" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2] and log[0]["loss"] == pytest.approx(loss.item(), abs=1e-4)
    other = batch | {"caption": ["Something else entirely.", "And more."]}
    assert abs(CaptionObjective(start, TrainConfig(stage=1))(other)["loss"] - loss) > 1e-3
    trained = ULLSAM.from_pretrained(tmp_path / "debug-stage1").state_dict()
    changed = {name.split(".")[0] for name, value in start.state_dict().items() if not torch.equal(value, trained[name])}
    assert changed == {"projection"}


def test_pairs_serve_stage_2_and_no_stage_that_needs_masks(pairs, tmp_path, capsys):
    stage2 = ["train", "--preset", "debug", "--stage", "2", "--steps", "1", "--batch-size", "1"]
    assert main([*stage2, "--data", str(pairs), "--out", str(tmp_path)]) == 0
    for stage in ("0", "3"):
        line = ["train", "--preset", "debug", "--stage", stage, "--data", str(pairs.parents[1]), "--out", str(tmp_path)]
        assert main(line) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"{pairs} holds image-text pairs without masks, which only stages 1 and 2 can learn from" in error


def test_a_single_dataset_with_masks_may_be_named(tmp_path, make_corpus):
    folder = make_corpus(tmp_path / "cells", 2)
    (folder / "images.csv").write_text("file,split\n0.png,train\n1.png,test\n")
    line = ["train", "--preset", "debug", "--stage", "3", "--steps", "1", "--batch-size", "1"]
    assert main([*line, "--data", str(folder), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "debug-stage3" / "model.safetensors").is_file()


def config(*words):
    options = parse(["train", *words]).keywords
    return options["settings"].config(options["model"].preset, options["stage"])


def test_the_presets_settings_and_what_changes_them():
    assert config("--preset", "paper", "--stage", "2") == PAPER_TRAINING[2]
    changed = config("--preset", "paper", "--stage", "3", "--lr", "1e-4", "--accumulate", "2", "--precision", "no")
    assert changed == replace(PAPER_TRAINING[3], lr=1e-4, accumulate=2, precision="no")
    assert config("--preset", "debug", "--stage", "1", "--steps", "5") == TinyTrainConfig(stage=1, steps=5)
    assert config("--preset", "debug", "--stage", "3", "--recompute", "all").recompute == "all"


def test_stages_follow_one_another_from_the_command_line(tmp_path, capsys):
    common = ["--preset", "debug", "--synthetic", "--steps", "1", "--batch-size", "1", "--out", str(tmp_path)]
    assert main(["train", *common, "--stage", "1", "--lora", "2"]) == 0
    assert main(["train", *common, "--stage", "2", "--start", str(tmp_path / "debug-stage1")]) == 0
    assert main(["train", *common, "--stage", "3", "--start", str(tmp_path / "debug-stage2")]) == 0
    folders = [ULLSAM.from_pretrained(tmp_path / f"debug-stage{i}") for i in (1, 2, 3)]
    assert [model.config.llm.lora_rank for model in folders] == [2, 2, 2]
    first, second, third = (model.state_dict() for model in folders)
    assert torch.equal(first["sam.image_encoder.pos_embed"], second["sam.image_encoder.pos_embed"])
    assert not torch.equal(second["sam.image_encoder.pos_embed"], third["sam.image_encoder.pos_embed"])
    assert "debug-stage3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Name a recipe"),
        (["ullsam-tiny", "--preset", "tiny"], "one of the two"),
        (["--preset", "debug"], "--stage is None"),
        (["--preset", "debug", "--stage", "7", "--synthetic"], "give one of 0, 1, 2, 3"),
        (["--preset", "debug", "--stage", "1", "--steps", "0", "--synthetic"], "--steps is 0"),
        (["--preset", "debug", "--stage", "1", "--sam", "x.pth", "--synthetic"], "parts of the preset paper"),
        (["--preset", "huge", "--stage", "1", "--synthetic"], "no preset 'huge'"),
        (["nothing"], "no recipe 'nothing'"),
        (["--preset", "paper", "--stage", "1", "--synthetic"], "needs llm="),
        (["--preset", "paper", "--stage", "2", "--lora", "8", "--synthetic"], "needs llm="),
        (["--preset", "paper", "--stage", "2", "--lora", "8", "--synthetic", "--llm", "x", "--ullsam", "y"], "adapters out"),
        (["--preset", "debug", "--stage", "2", "--dtype", "bfloat16", "--synthetic"], "lost to rounding; leave --dtype out"),
        (["--preset", "debug", "--stage", "1", "--synthetic", "--start", "nowhere"], "no model in nowhere"),
        (["--preset", "debug", "--stage", "1", "--synthetic", "--start", "x", "--lora", "2"], "leave --lora out"),
    ],
)
def test_wrong_input_is_one_sentence(words, sentence, tmp_path, capsys):
    assert main(["train", "--out", str(tmp_path), *words]) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
