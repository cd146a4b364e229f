"""The chain of training runs: each starts from the one before, the last is shipped."""

import json
from dataclasses import replace

import pytest
import torch

import ullsam
from ullsam import ULLSAM, InputError, LlmConfig, preset
from ullsam.tiny import TinySamConfig, TinyTrainConfig, recipes
from ullsam.tiny.recipes import RECIPES, load_parts, run_recipe, ship


@pytest.fixture
def corpora(tmp_path, make_corpus):
    folder = make_corpus(tmp_path / "corpora" / "in_domain" / "cells", 2, "{:04d}.png")
    (folder / "images.csv").write_text("file,source_id,split\n0000.png,a,train\n0001.png,b,test\n")
    return tmp_path / "corpora"


@pytest.fixture
def small(monkeypatch):
    """The table of recipes, each at the smallest size."""
    plain = preset("debug", llm=None, vlsa="none")
    whole = preset("debug", llm=LlmConfig(name="debug", lora_rank=2))
    steps = TinyTrainConfig(steps=2, batch_size=1, warmup=1, instances=2, log_every=1)
    table = {
        name: replace(r, model=plain if r.model.llm is None else whole, train=replace(steps, stage=r.train.stage))
        for name, r in RECIPES.items()
    }
    monkeypatch.setattr(recipes, "RECIPES", table)


def test_the_chain_ends_in_weights_that_load(tmp_path, corpora, small):
    runs, data = tmp_path / "runs", tmp_path / "data"
    for name in recipes.RECIPES:
        run_recipe(name, runs, corpora, progress=False)
    for name in ("ullsam-tiny", "usam-tiny"):
        model = ullsam.load(ship(name, runs, data))
        assert (model.vlsa is None) == (name == "usam-tiny")
    logs = json.loads((data / "results" / "training_log.json").read_text())
    assert set(logs) == set(recipes.RECIPES) and logs["describe"][-1]["step"] == 2
    stored = (data / "weights" / "ullsam-tiny" / "model.safetensors").stat().st_size
    assert stored < (runs / "ullsam-tiny" / "model.safetensors").stat().st_size * 0.6


def test_a_run_starts_from_the_run_before(tmp_path, corpora, small):
    for name in ("pretrain", "align"):
        run_recipe(name, tmp_path, corpora, progress=False)
    before, after = (ullsam.load(tmp_path / name).sam.state_dict() for name in ("pretrain", "align"))
    assert all(torch.equal(before[k], v) for k, v in after.items())


STEM = TinySamConfig(**{**vars(preset("debug").sam), "stem": (8, 16, 24), "use_rel_pos": False})


def test_a_summary_may_be_new_but_nothing_else_of_sam(tmp_path):
    plain = preset("debug", llm=None, vlsa="none", sam=STEM)
    new = replace(plain, sam=replace(STEM, summary=True))
    ULLSAM.from_config(plain, 1).save_pretrained(tmp_path)
    model = ULLSAM.from_config(new)
    load_parts(model, tmp_path)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        same = torch.equal(model.encode(pixels).embedding, ullsam.load(tmp_path).encode(pixels).embedding)
    assert same
    with pytest.raises(InputError, match="summary"):  # a summary that the model has no place for
        model.save_pretrained(tmp_path)
        load_parts(ULLSAM.from_config(plain), tmp_path)


def test_parts_can_begin_anew(tmp_path):
    config = preset("debug", llm=None, vlsa="none", sam=STEM)
    old, model = ULLSAM.from_config(config, 1), ULLSAM.from_config(replace(config, sam=replace(STEM, qk_norm=True)), 2)
    old.save_pretrained(tmp_path)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match="q_norm"):  # the saved model has no such part
        load_parts(model, tmp_path)
    load_parts(model, tmp_path, ("sam.image_encoder.blocks.",))
    for key, value in model.state_dict().items():
        kept = key.startswith("sam.image_encoder.blocks.")
        assert torch.equal(value, before[key] if kept else old.state_dict()[key]), key


def test_mistakes_get_a_sentence(tmp_path, corpora, small):
    with pytest.raises(InputError, match="no recipe 'bases'; choose one of pretrain, align"):
        run_recipe("bases", tmp_path)
    with pytest.raises(InputError, match="is missing"):
        run_recipe("align", tmp_path, corpora, progress=False)
    with pytest.raises(InputError, match="no model in"):
        ship("ullsam-tiny", tmp_path, tmp_path)


def test_the_shipped_pair_differs_in_nothing_but_the_language_model():
    ours, baseline = RECIPES["ullsam-tiny"], RECIPES["usam-tiny"]
    assert ours.train == replace(baseline.train, caption_weight=0.2, **recipes.WORDS)
    assert ours.model.sam == baseline.model.sam and ours.synthetic_fraction == baseline.synthetic_fraction
