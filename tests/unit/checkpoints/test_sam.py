"""SAM's checkpoints in every layout they come in, against segment_anything and transformers."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SamConfig as TheirConfig
from transformers import SamModel

from ullsam import InputError, Prompts, build_sam, decode_masks, encode_image, encode_prompts, preset
from ullsam.checkpoints import load_sam, read_sam
from ullsam.checkpoints.sam import SIZES, check_kind, sam_config

DEBUG = preset("debug").sam


@pytest.fixture
def sam():
    """A small SAM whose weights all differ from zero."""
    model = build_sam(DEBUG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@torch.no_grad()
def logits(sam, pixels, points, labels):
    features = encode_image(sam.image_encoder, pixels)
    prompts = encode_prompts(sam.prompt_encoder, Prompts(points, labels))
    return decode_masks(sam.mask_decoder, features, sam.prompt_encoder.get_dense_pe(), *prompts)


def inputs():
    g = torch.Generator().manual_seed(1)
    points = torch.rand(1, 2, 3, 2, generator=g) * 64
    return torch.randn(1, 3, 64, 64, generator=g), points, torch.tensor([[[1, 0, 1], [1, 1, 0]]])


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(logits(a, *INPUTS), logits(b, *INPUTS), strict=True))


INPUTS = inputs()


def write(sam, folder):
    """The same weights as Meta, uSAM and training scripts store them."""
    state = sam.state_dict()
    prefixed = {"sam." + k: v for k, v in state.items()}
    torch.save(state | {"pixel_mean": torch.ones(3)}, folder / "sam_vit.pth")
    torch.save(state, folder / "usam.pth", _use_new_zipfile_serialization=False)
    torch.save({"model_state": prefixed, "decoder_state": {"out_conv.weight": torch.ones(3)}}, folder / "usam.pt")
    torch.save({"model": state, "optimizer": {}, "epoch": 3}, folder / "medsam.pth")
    save_file(state, folder / "sam.safetensors")


@pytest.mark.parametrize("name", ["sam_vit.pth", "usam.pth", "usam.pt", "medsam.pth", "sam.safetensors"])
def test_files_of_sam_and_usam_load_whole(tmp_path, sam, name):
    write(sam, tmp_path)
    loaded, config = load_sam(tmp_path / name)
    assert config == DEBUG  # all sizes told from the shapes
    assert same(loaded, sam) and not loaded.training
    assert not any(x.is_meta for x in (*loaded.parameters(), *loaded.buffers()))


def test_sizes_of_the_real_kinds_are_told_from_shapes():
    indexes = {"vit_b": (2, 5, 8, 11), "vit_l": (5, 11, 17, 23), "vit_h": (7, 15, 23, 31)}
    for kind, (width, depth) in SIZES.items():
        sizes = dict(embed_dim=width, depth=depth, num_heads=12 if kind == "vit_b" else 16)
        config = replace(preset("paper").sam, global_attn_indexes=indexes[kind], **sizes)
        with torch.device("meta"):
            state = build_sam(config).state_dict()
        assert sam_config(state, "file") == config
        check_kind(config, kind, "file")
    with pytest.raises(InputError, match="big.pth holds vit_h, not vit_b; give the vit_b file"):
        check_kind(config, "vit_b", "big.pth")
    with pytest.raises(InputError, match="a SAM of width 32 with 2 blocks, not vit_l"):
        check_kind(DEBUG, "vit_l", "small.pth")
    with pytest.raises(InputError, match="no SAM kind 'vit_t'; choose one of vit_b, vit_l, vit_h"):
        check_kind(DEBUG, "vit_t", "small.pth")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["usam.pt", "sam.safetensors"])
def test_no_second_copy_in_memory(tmp_path, sam, name):
    write(sam, tmp_path)
    loaded, _ = load_sam(tmp_path / name)
    lines = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(f"/{name}")]
    mapped = [[int(end, 16) for end in line.split("-")] for line in lines]
    for parameter in loaded.parameters():  # each stands in the file, as the operating system maps it
        assert any(low <= parameter.data_ptr() < high for low, high in mapped)


def test_dtype_is_an_argument(tmp_path, sam):
    torch.save(sam.half().state_dict(), tmp_path / "half.pth")
    assert {p.dtype for p in load_sam(tmp_path / "half.pth")[0].parameters()} == {torch.float32}
    assert {p.dtype for p in load_sam(tmp_path / "half.pth", dtype=None)[0].parameters()} == {torch.float16}
    assert {p.dtype for p in load_sam(tmp_path / "half.pth", dtype=torch.bfloat16)[0].parameters()} == {torch.bfloat16}


@pytest.fixture
def transformers_folder(tmp_path):
    """A folder like facebook/sam-vit-base, small."""
    vision = dict(
        hidden_size=32,
        output_channels=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        window_size=2,
        global_attn_indexes=[1],
        num_pos_feats=16,
        mlp_dim=128,
    )
    prompt = dict(hidden_size=32, image_size=64, mask_input_channels=8)
    decoder = dict(hidden_size=32, mlp_dim=64, iou_head_hidden_dim=32)
    model = SamModel(TheirConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf", model


@torch.no_grad()
def test_transformers_layout_gives_their_masks(transformers_folder):
    folder, theirs = transformers_folder
    ours, config = load_sam(folder)
    assert config == DEBUG
    pixels, points, labels = INPUTS
    for multimask in (False, True):
        expected = theirs(pixel_values=pixels, input_points=points, input_labels=labels, multimask_output=multimask)
        masks, quality = logits(ours, *INPUTS)
        kinds = slice(1, None) if multimask else slice(0, 1)
        torch.testing.assert_close(masks[:, kinds], expected.pred_masks[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(quality[:, kinds], expected.iou_scores[0], atol=1e-5, rtol=1e-4)


def test_transformers_layout_by_hub_name_and_as_one_file(transformers_folder, monkeypatch):
    folder, _ = transformers_folder
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    by_folder, by_name = load_sam(folder)[0], load_sam("facebook/sam-vit-base")[0]
    assert same(by_folder, by_name) and same(by_folder, load_sam(folder / "model.safetensors")[0])


def test_tied_position_codes_of_transformers_may_be_stored_once_or_twice(transformers_folder):
    folder, _ = transformers_folder
    state = load_file(folder / "model.safetensors")
    names = ["shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding"]
    code = next(state[n] for n in names if n in state)
    before = load_sam(folder)[0]
    for stored in (names[:1], names[1:], names):
        rest = {k: v for k, v in state.items() if k not in names}
        save_file(rest | {n: code.clone() for n in stored}, folder / "model.safetensors")
        assert same(load_sam(folder)[0], before)


def test_missing_unexpected_and_misshapen_weights_are_named(tmp_path, sam):
    path, state = tmp_path / "sam.pth", sam.state_dict()
    cases = {
        "sam.pth is missing mask_decoder.iou_token.weight": {k: v for k, v in state.items() if "iou_token" not in k},
        "sam.pth is missing image_encoder.blocks.0.attn.rel_pos_h": {k: v for k, v in state.items() if "rel_pos_h" not in k},
        "sam.pth has unexpected adapter.weight": state | {"adapter.weight": torch.ones(1)},
        "weights of shapes that no SAM has .*; get it again": state | {"image_encoder.pos_embed": torch.ones(3)},
        r"shapes that no SAM has \(image_size is 0": state | {"image_encoder.patch_embed.proj.weight": torch.ones(0)},
        "shapes that do not fit: mask_decoder.iou_token.weight": state | {"mask_decoder.iou_token.weight": torch.ones(1, 9)},
    }
    for sentence, changed in cases.items():
        torch.save(changed, path)
        with pytest.raises(InputError, match=sentence):
            load_sam(path)


def test_other_models_are_called_by_their_names(tmp_path):
    one = torch.ones(1)
    cases = {
        "is a checkpoint of SAM 2, not of SAM": {"model": {"image_encoder.trunk.blocks.0.norm1.weight": one}},
        "is a checkpoint of SAM-HQ": {"image_encoder.pos_embed": one, "mask_decoder.hf_token.weight": one},
        "is a checkpoint of MobileSAM": {"image_encoder.patch_embed.seq.0.c.weight": one},
        r"is a checkpoint of uLLSAM \(give it as ullsam=\)": {"model": {"language_model.output.weight": one}},
        "is not a SAM checkpoint .it has out_conv.weight": {"out_conv.weight": one},
        "is not a SAM checkpoint .it has no tensors": {"epoch": 1},
    }
    for sentence, content in cases.items():
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(InputError, match=sentence):
            load_sam(tmp_path / "other.pth")


def test_training_checkpoints_of_usam_say_how_to_export_them(tmp_path, monkeypatch):
    module = ModuleType("torch_em.trainer")
    module.Settings = type("Settings", (), {"__module__": "torch_em.trainer"})
    for name in ("torch_em", "torch_em.trainer"):
        monkeypatch.setitem(sys.modules, name, module)
    torch.save({"model_state": {}, "init": module.Settings()}, tmp_path / "best.pt")
    with pytest.raises(InputError, match=r"\(torch_em.trainer.Settings\) .*micro_sam.*export_custom_sam_model"):
        read_sam(tmp_path / "best.pt")
