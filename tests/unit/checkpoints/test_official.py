"""The official uLLSAM layout, and the paper's model put together from real files, at a small size."""

import argparse
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ullsam import ULLSAM, InputError, Prompts, build_sam, load, preset
from ullsam.checkpoints import check_parity, load_official, load_paper, save_official
from ullsam.checkpoints.internlm2 import empty_lm, from_llama, llama_config
from ullsam.checkpoints.official import to_official
from ullsam.checkpoints.parity import outputs
from ullsam.cli import main
from ullsam.files import write_safetensors
from ullsam.llm import LanguageModel

LLM = {
    "model_type": "internlm2",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "vocab_size": 259,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
}


def shaken(model, seed=0):
    """The model with weights that are all different from their start, by seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return model


@pytest.fixture(scope="module")
def ours():
    """A small model whose language model is a Llama, prepared as the official code does."""
    config = preset("debug")
    return shaken(ULLSAM.from_config(replace(config, sam=replace(config.sam, preprocessing="official", placement="center"))))


@pytest.fixture(scope="module")
def files(ours, tmp_path_factory):
    """What a user has downloaded: an official checkpoint, SAM, and an InternVL folder, small and in the real formats."""
    folder = tmp_path_factory.mktemp("files")
    official = to_official(ours)
    args = argparse.Namespace(lr=1e-3, device="cuda:0")
    content = {"model": official, "optimizer": {"state": {}}, "scheduler": {}, "epoch": 24, "step": 7, "args": args}
    torch.save(content, folder / "final_all_e24.pt")
    segmenting = ("prompt_encoder.", "mask_decoder.")
    content["model"] = {k: v for k, v in official.items() if not k.startswith(segmenting)}
    torch.save(content, folder / "sft_all_e1.pt")
    torch.save(ours.sam.state_dict(), folder / "sam.pth")
    language = {"language_model." + k: v for k, v in from_llama(ours.llm.lm)}
    mlp1 = {f"mlp1.{k}": v.clone() for k, v in ours.projection.mlp.state_dict().items()}
    mlp1 |= {"mlp1.0.weight": torch.ones(512), "mlp1.0.bias": torch.ones(512), "mlp1.1.weight": torch.ones(48, 512)}
    write_safetensors(folder / "InternVL", language | mlp1 | {"vision_model.x": torch.ones(2)}, shard_bytes=100_000)
    ours.llm.tokenizer.save_pretrained(folder / "InternVL")
    (folder / "InternVL" / "config.json").write_text(json.dumps({"model_type": "internvl_chat", "llm_config": LLM}))
    return folder


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


@torch.no_grad()
def forward(model, seed=5):
    """Masks with and without knowledge, and the knowledge."""
    g = torch.Generator().manual_seed(seed)
    features = model.encode(torch.rand(2, 3, 64, 64, generator=g))
    prompts = Prompts(torch.rand(2, 3, 4, 2, generator=g) * 64, torch.tensor([1, 0, 0, 0]).expand(2, 3, 4))
    knowledge = model.knowledge(features)
    return knowledge, model.segment(features, prompts, knowledge)[0], model.segment(features, prompts)[0]


def test_official_checkpoint_loads_and_goes_back(ours, files, tmp_path):
    model = load("paper", ullsam=files / "final_all_e24.pt", llm=files / "InternVL")
    assert equal(model, ours)
    assert model.config.sam == ours.config.sam  # sizes from the shapes; official preprocessing named
    assert model.config.llm.before_image.startswith("<s><|im_start|>system")
    save_official(model, tmp_path / "again.pt", epoch=2)
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    first = torch.load(files / "final_all_e24.pt", weights_only=False)["model"]
    assert again["epoch"] == 2 and set(again["model"]) == set(first)
    assert all(torch.equal(again["model"][k], first[k]) for k in first)


def test_names_of_the_official_layout(ours):
    names = set(to_official(ours))
    assert {
        "vision_model.pos_embed",
        "vision_model.blocks.0.attn.rel_pos_h",
        "prompt_encoder.llm_scale_factor",
        "prompt_encoder.llm_bias",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "mlp1.3.bias",
        "mask_decoder.iou_token.weight",
        "language_model.model.layers.1.attention.wqkv.weight",
        "mlp2.0.weight",
        "language_model.model.tok_embeddings.weight",
        "language_model.output.weight",
    } <= names
    assert not [k for k in names if "q_proj" in k and "language" in k]


def test_preprocessing_is_what_the_checkpoint_says(ours, files, tmp_path):
    assert load_official(files / "final_all_e24.pt")[1] == dict(preprocessing="official", placement="center")
    config = replace(ours.config, sam=preset("debug").sam)
    save_official(shaken(ULLSAM.from_config(config)), tmp_path / "sam_way.pt")
    model = load("paper", ullsam=tmp_path / "sam_way.pt", llm=files / "InternVL")
    assert (model.config.sam.preprocessing, model.config.sam.placement) == ("sam", "corner")
    image = np.full((40, 60, 3), 255, np.uint8)
    pixels = load("paper", ullsam=files / "final_all_e24.pt", llm=files / "InternVL").preprocess([image])[0]
    assert pixels.max() == 1 and pixels[0, 0, 0].max() == 0 and pixels[0, 0, -1].max() == 0  # 0..1, padded above and below
    assert model.preprocess([image])[0][0, 0, 0].min() > 2  # (255 - 123.7) / 58.4, nothing above


def test_sft_checkpoint_needs_sam_and_takes_it(ours, files):
    with pytest.raises(InputError, match=r"sft_all_e1.pt has no prompt encoder and mask decoder .*as sam="):
        load("paper", ullsam=files / "sft_all_e1.pt", llm=files / "InternVL")
    model = load("paper", ullsam=files / "sft_all_e1.pt", llm=files / "InternVL", sam=files / "sam.pth")
    new = {"vlsa.scale": 0.1, "vlsa.shift": 0.0}  # not in the file: the start values
    own, expected = model.state_dict(), ours.state_dict()
    assert all(torch.equal(own[k], expected[k]) for k in expected if k not in new)
    assert {k: own[k].item() for k in new} == pytest.approx(new)


def test_start_of_training_from_sam_and_internvl(ours, files):
    model = load("paper", sam=files / "sam.pth", llm=files / "InternVL")
    assert equal(model.sam, ours.sam) and equal(model.llm, ours.llm)
    assert (model.config.sam.preprocessing, model.config.sam.placement) == ("sam", "corner")
    own, theirs = model.projection.mlp, ours.projection.mlp
    assert torch.equal(own[3].weight, theirs[3].weight) and torch.equal(own[1].bias, theirs[1].bias)
    assert own[1].weight.shape == (48, 128) and not torch.equal(own[1].weight, theirs[1].weight)  # InternVL's is wider
    again = load("paper", sam=files / "sam.pth", llm=files / "InternVL")
    assert equal(model, again)  # random parts by seed
    assert not equal(load_paper(files / "sam.pth", files / "InternVL", seed=1), model)
    assert not any(x.is_meta for x in (*model.parameters(), *model.buffers()))
    assert not any(p.requires_grad for p in model.llm.parameters()) and model.vlsa.scale.requires_grad


def test_adapters_on_the_papers_language_model(ours, files, tmp_path):
    model = load_paper(files / "sam.pth", files / "InternVL", dtype=torch.bfloat16, lora_rank=2)
    kinds = {"lora_" in name: p.dtype for name, p in model.llm.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}  # what is trained is never rounded
    model = replace_prompt(load_paper(files / "sam.pth", files / "InternVL", lora_rank=2))
    plain = replace_prompt(load_paper(files / "sam.pth", files / "InternVL"))
    assert all(torch.equal(a, b) for a, b in zip(forward(model), forward(plain), strict=True))  # they add nothing at first
    shaken(nn.ModuleList(m for n, m in model.llm.named_modules() if n.endswith("lora_B")))
    assert not torch.equal(forward(model)[0], forward(plain)[0])
    model.save_pretrained(tmp_path / "adapted")
    stored = load_file(tmp_path / "adapted" / "model.safetensors")
    assert all("lora_" in k for k in stored if k.startswith("llm.")) and not (tmp_path / "adapted" / "llm").exists()
    again = load(tmp_path / "adapted")
    assert equal(again, model) and again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(forward(replace_prompt(again)), forward(model), strict=True))
    with pytest.raises(InputError, match="has no folder of its own; leave the adapters out"):
        load_paper(ullsam=files / "final_all_e24.pt", llm=files / "InternVL", lora_rank=2)


def test_adapters_of_a_language_model_that_is_gone(files, tmp_path):
    shutil.copytree(files / "InternVL", tmp_path / "InternVL")
    load_paper(files / "sam.pth", tmp_path / "InternVL", lora_rank=2).save_pretrained(tmp_path / "adapted")
    shutil.rmtree(tmp_path / "InternVL")
    with pytest.raises(InputError, match="no file or folder .*InternVL"):
        load(tmp_path / "adapted")


def test_any_language_model_of_transformers(ours, files, tmp_path):
    ours.llm.lm.save_pretrained(tmp_path / "llama")
    ours.llm.tokenizer.save_pretrained(tmp_path / "llama")
    model = load("paper", sam=files / "sam.pth", llm=tmp_path / "llama", dtype=torch.bfloat16)
    assert {p.dtype for p in model.llm.parameters()} == {torch.bfloat16}
    assert model.llm.lm.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.config.llm.before_image.startswith("<|im_start|>user")
    assert load("paper", sam=files / "sam.pth", llm="debug").llm.dim == 48


def test_a_language_model_of_transformers_is_loaded_as_strictly(ours, files, tmp_path, capfd):
    ours.llm.lm.save_pretrained(tmp_path)
    ours.llm.tokenizer.save_pretrained(tmp_path)
    file, name = tmp_path / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    state = load_file(file)
    cases = {
        f"is missing {name}": {k: x for k, x in state.items() if k != name},
        "has unexpected more.weight": state | {"more.weight": torch.ones(1)},
        rf"{name} \(3, 48\) instead of \(96, 48\)": state | {name: torch.ones(3, 48)},
    }
    capfd.readouterr()
    for sentence, changed in cases.items():
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(InputError, match=sentence):
            load("paper", sam=files / "sam.pth", llm=tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="weights in .* could not be loaded .*incomplete.*download the whole repository"):
        load("paper", sam=files / "sam.pth", llm=tmp_path)
    file.unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")  # a pickle is not even looked at
    with pytest.raises(InputError, match="could not be loaded .*safetensors"):
        load("paper", sam=files / "sam.pth", llm=tmp_path)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_half_precision_language_model_computes_the_same_roughly(ours, files):
    model = load("paper", ullsam=files / "final_all_e24.pt", llm=files / "InternVL", dtype=torch.bfloat16)
    assert {p.dtype for p in model.llm.parameters()} == {torch.bfloat16}
    assert {p.dtype for n, p in model.named_parameters() if not n.startswith("llm.")} == {torch.float32}
    reference = replace_prompt(load("paper", ullsam=files / "final_all_e24.pt", llm=files / "InternVL"))
    for a, b in zip(forward(replace_prompt(model)), forward(reference), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=0.05, rtol=0.05)


def replace_prompt(model):
    """The system message in Chinese is long in bytes; a short prompt does for a forward."""
    model.llm.config = replace(model.llm.config, before_image="<|im_start|>user\n")
    return model


def test_converted_folder_holds_everything(ours, files, tmp_path, capsys):
    out, shards = tmp_path / "model", files / "InternVL"
    command = ["convert", "--ullsam", str(files / "final_all_e24.pt"), "--llm", str(shards), "--out", str(out)]
    assert main(command) == 0 and "written to" in capsys.readouterr().out
    model = load(out)
    assert equal(model, ours) and not model.training
    assert model.config.sam == ours.config.sam
    for a, b in zip(forward(replace_prompt(model)), forward(replace_prompt(load(out))), strict=True):
        assert torch.equal(a, b)
    assert main(["convert", "--model", str(out), "--out", str(tmp_path / "back.pt")]) == 0
    assert equal(load("paper", ullsam=tmp_path / "back.pt", llm=out / "llm"), ours)
    model.save_pretrained(out)  # over the files that its weights are mapped from
    assert equal(load(out), ours)
    assert {p.dtype for p in load(out, dtype=torch.bfloat16).llm.parameters()} == {torch.bfloat16}


def test_forward_of_ours_and_of_the_converted_are_equal(ours, files, tmp_path):
    model = load("paper", ullsam=files / "final_all_e24.pt", llm=files / "InternVL")
    model.llm.config = ours.llm.config
    for a, b in zip(forward(model), forward(ours), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_what_is_wrong_with_the_files_is_said(ours, files, tmp_path):
    official, internvl, sam = files / "final_all_e24.pt", files / "InternVL", files / "sam.pth"
    cases = [
        (dict(ullsam=official), "needs llm=, .*config.json and tokenizer.model are enough"),
        (dict(llm=internvl), r"The paper's model needs SAM; give a SAM or uSAM file as sam="),
        (dict(ullsam=official, llm=internvl, sam=sam), "holds its own SAM; leave sam=.* out"),
        (dict(ullsam=files, llm=internvl), "is a folder; a model that was saved there is loaded with ullsam.load"),
        (dict(ullsam=sam, llm=internvl), "sam.pth is not an official uLLSAM checkpoint .*given as sam="),
        (dict(sam=official, llm=internvl), r"is a checkpoint of uLLSAM \(give it as ullsam=\)"),
        (dict(sam=sam, llm=tmp_path / "none"), "no file or folder .*none"),
        (dict(sam=tmp_path / "none.pth", llm=internvl), "no file or folder .*none.pth"),
    ]
    for arguments, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            load("paper", **arguments)
    with pytest.raises(InputError, match="are the parts of 'paper'; leave them out to load tiny"):
        load("tiny", sam=sam)
    for name, change, sentence in (
        ("short", lambda s: s.pop("mlp2.1.bias"), "short.pt is missing mlp2.1.bias"),
        ("more", lambda s: s.update(mlp3=torch.ones(1)), "more.pt has unexpected mlp3"),
        ("wide", lambda s: s.update({"mlp2.1.bias": torch.ones(9)}), r"shapes that do not fit: vlsa.mlp.1.bias \(9,\)"),
        ("nolm", lambda s: s.pop("language_model.output.weight"), "nolm.pt is missing language_model.output.weight"),
    ):
        state = dict(to_official(ours))
        change(state)
        torch.save({"model": state}, tmp_path / f"{name}.pt")
        with pytest.raises(InputError, match=sentence):
            load("paper", ullsam=tmp_path / f"{name}.pt", llm=internvl)


def test_a_shard_that_is_missing_stops_the_conversion_and_leaves_nothing(files, tmp_path, capsys):
    shutil.copytree(files / "InternVL", tmp_path / "InternVL")
    next((tmp_path / "InternVL").glob("model-00002*")).unlink()
    command = ["convert", "--sam", str(files / "sam.pth"), "--llm", str(tmp_path / "InternVL"), "--out", str(tmp_path / "o")]
    assert main(command) == 2
    assert "lacks model-00002-of" in capsys.readouterr().err and not (tmp_path / "o").exists()
    (tmp_path / "o").write_text("in the way")
    assert main(command) == 2
    assert "is a file; name a folder for the model" in capsys.readouterr().err


def test_models_without_a_place_in_the_official_layout_are_refused(tmp_path):
    cases = {
        "has no language model": preset("debug", llm=None, vlsa="none"),
        "VLSA variant is 'tokens'": preset("debug", vlsa="tokens"),
        "has LoRA adapters": preset("debug", llm=replace(preset("debug").llm, lora_rank=2)),
    }
    for sentence, config in cases.items():
        with pytest.raises(InputError, match=sentence):
            save_official(ULLSAM.from_config(config), tmp_path / "no.pt")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def reference(ours, files, tmp_path):
    """A folder for `parity`: what our model gives, stored as if the official code had recorded it."""
    g = torch.Generator().manual_seed(3)
    ids = torch.cat([torch.arange(3, 9), torch.full((4,), 258), torch.arange(20, 25)])[None]
    inputs = {
        "pixel_values": torch.rand(1, 3, 64, 64, generator=g),
        "input_ids": ids,
        "points": torch.rand(3, 4, 2, generator=g) * 64,
        "labels": torch.tensor([[1, 0, 0, 0]] * 3),
    }
    folder = tmp_path / "reference"
    folder.mkdir()
    shutil.copy(files / "final_all_e24.pt", folder / "official_checkpoint.pt")
    sam = {"image_size": 64, "depth": 2, "global_attn_indexes": [1], "decoder": {"mlp_dim": 64}}
    settings = {"sam": sam, "llm": LLM, "img_context_token_id": 258}
    (folder / "config.json").write_text(json.dumps(settings))
    model = load("paper", ullsam=folder / "official_checkpoint.pt", llm=files / "InternVL")
    model.llm.ids = lambda _: ids[0, :6].tolist()
    found = outputs(model, slice(6, 10), *inputs.values())
    save_file({k: v.contiguous() for k, v in (found | inputs).items()}, folder / "io.safetensors")
    return folder, settings


def test_parity_prints_each_tensor_and_says_yes_or_no(reference, capsys):
    folder, _ = reference
    assert main(["parity", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} >= {
        "image_embeddings",
        "vlsa_features",
        "dense_embeddings",
        "low_res_masks",
        "low_res_masks_without_vlk",
        "logits",
    }
    assert all(float(line.split()[1]) <= 1e-5 and line.endswith("ok") for line in lines)
    recorded = load_file(folder / "io.safetensors")
    recorded["logits"][0, 3, 7] += 0.01
    save_file(recorded, folder / "io.safetensors")
    assert main(["parity", str(folder)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.endswith("differs")]
    assert [line.split()[0] for line in failed] == ["logits"]
    assert float(failed[0].split()[1]) == pytest.approx(0.01, abs=1e-4)
    assert main(["parity", str(folder), "--tolerance", "0.1"]) == 0


def test_parity_names_what_a_folder_lacks(reference, capsys):
    folder, settings = reference
    recorded = load_file(folder / "io.safetensors")
    (folder / "config.json").write_text(json.dumps(settings | {"sam": settings["sam"] | {"depth": 3}}))
    with pytest.raises(InputError, match="config.json says depth 3, but the checkpoint's weights are made for 2"):
        check_parity(folder)
    (folder / "config.json").write_text(json.dumps(settings | {"img_context_token_id": 1}))
    with pytest.raises(InputError, match="hold no image token"):
        check_parity(folder)
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(recorded | {"depth": torch.ones(1)}, folder / "io.safetensors")
    with pytest.raises(InputError, match="has depth, which is not compared"):
        check_parity(folder)
    save_file(recorded | {"pixel_values": torch.zeros(1, 3, 32, 48)}, folder / "io.safetensors")
    with pytest.raises(InputError, match="image of 32 x 48 pixels, the checkpoint is for 64 x 64"):
        check_parity(folder)
    save_file({k: v for k, v in recorded.items() if k != "points"}, folder / "io.safetensors")
    with pytest.raises(InputError, match="has no points"):
        check_parity(folder)
    (folder / "io.safetensors").unlink()
    assert main(["parity", str(folder)]) == 2
    assert capsys.readouterr().err.startswith(f"ullsam: There is no file {folder / 'io.safetensors'};")


def test_the_papers_sizes_without_memory():
    """All names and shapes of a real checkpoint, on the meta device."""
    sizes = dict(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=92553,
    )
    config = preset("paper")
    with torch.device("meta"):
        language = LanguageModel(empty_lm(llama_config(LLM | sizes, "here")), None, config.llm)
        state = to_official(ULLSAM(config, build_sam(config.sam), language))
    assert state["language_model.model.layers.23.attention.wqkv.weight"].shape == (4096, 2048)
    assert state["language_model.output.weight"].shape == (92553, 2048)
    count = {part: sum(x.numel() for k, x in state.items() if k.startswith(part)) for part in ("mlp1", "mlp2", "language")}
    assert count["mlp1"] == 6_297_600 and count["mlp2"] == 3_151_872 and round(count["language"] / 1e6) == 1889
    assert state["vision_model.pos_embed"].shape == (1, 64, 64, 768)
