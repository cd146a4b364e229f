"""Numbers that the official code gave, kept in golden/official_small.npz (at most 300 kB), and seeded ones of a whole model.

Written by `python tests/unit/checkpoints/test_golden.py FOLDER`; FOLDER holds the official small checkpoint with recorded
inputs and outputs; it refuses to write unless `python -m ullsam parity FOLDER` passes. Official numbers: the language model
(weights of all its layers, the rows of its tables that are used), point prompts, and the end of VLSA. Seeded numbers: every
output of a model whose weights come from a seed, in the official layout, computed by the code that passed.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from segment_anything.modeling import PromptEncoder

from ullsam import ULLSAM, Prompts, preset
from ullsam.checkpoints.internlm2 import llama_config, to_llama
from ullsam.checkpoints.official import from_official, to_official
from ullsam.checkpoints.parity import check_parity, open_reference, outputs
from ullsam.files import assign, read_json, read_safetensors, read_torch
from ullsam.pretrained import empty_lm
from ullsam.sam import encode_prompts
from ullsam.vlsa import PaperVLSA, VlsaShape, pixel_shuffle

GOLDEN = Path(__file__).parent / "golden" / "official_small.npz"
SIZES = {
    "model_type": "internlm2",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
}
LANGUAGE, POINTS = "language_model.", "prompt_encoder."
BLOCK = np.s_[0, :, 2:4, 4:6]  # four neighbouring places of the official maps
TOLERANCE = dict(atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as stored:
        return {k: torch.from_numpy(stored[k]) for k in stored.files if stored[k].dtype.kind in "fi"}


def test_golden_file_is_small():
    assert GOLDEN.stat().st_size <= 300_000


@torch.no_grad()
def test_language_model_gives_the_official_logits(golden):
    state = {k: v for k, v in golden.items() if k.startswith(LANGUAGE)}
    lm = empty_lm(llama_config(SIZES | {"vocab_size": len(golden["used"])}, "golden"))
    assign(lm, dict(to_llama(state, lm, "golden", LANGUAGE)), "golden")
    places = torch.searchsorted(golden["used"], golden["input_ids"])  # rows of the shortened table
    x = lm.get_input_embeddings()(places).clone()
    x[:, golden["image"][0] : golden["image"][1]] = golden["image_tokens"]
    logits = lm(inputs_embeds=x, use_cache=False).logits
    torch.testing.assert_close(logits, golden["logits"], **TOLERANCE)
    assert golden["logits"].std() > 0.1  # numbers that a wrong order of heads would change


@torch.no_grad()
def test_points_give_the_official_prompts(golden):
    encoder = PromptEncoder(256, (8, 8), (128, 128), 16)
    state = {k.removeprefix(POINTS): v for k, v in golden.items() if k.startswith(POINTS)}
    encoder.load_state_dict(encoder.state_dict() | state)
    sparse, _ = encode_prompts(encoder, Prompts(golden["points"][None], golden["labels"][None]))
    torch.testing.assert_close(sparse[..., ::4], golden["sparse_embeddings"], **TOLERANCE)


@torch.no_grad()
def test_vlsa_gives_the_official_dense_prompt(golden):
    vlsa = PaperVLSA(VlsaShape(1024, 256, (2, 2), 0.5))
    vlsa.mlp = torch.nn.Identity()  # the recording starts after it
    vlsa.scale.copy_(golden["llm_scale_factor"])
    vlsa.shift.copy_(golden["llm_bias"])
    features = golden["vlsa_features"].permute(1, 2, 0)[None]  # (256, 2, 2) -> (1, 2, 2, 256)
    dense = vlsa(pixel_shuffle(features, 0.5).flatten(1, 2))
    torch.testing.assert_close(dense[0], golden["dense_embeddings"], **TOLERANCE)


def seeded_outputs():
    """64 numbers of every output of a model whose official checkpoint is filled from a seed."""
    rng = np.random.default_rng(2)
    model = ULLSAM.from_config(preset("debug"))
    state = {}
    for name, old in sorted(to_official(model).items()):
        start = float(old.ndim == 1 and name.endswith("weight"))  # of norms
        state[name] = torch.from_numpy(start + 0.15 * rng.standard_normal(old.shape)).float()
    model.load_state_dict(dict(from_official(model, state, "seed")))
    ids = torch.from_numpy(rng.integers(0, 259, (1, 14)))
    model.llm.tokenizer = lambda *_, **__: SimpleNamespace(input_ids=ids[0, :6].tolist())
    pixels = torch.from_numpy(rng.random((1, 3, 64, 64))).float()
    points, labels = torch.from_numpy(rng.random((3, 4, 2)) * 64).float(), torch.tensor([[1, 0, 0, 0]] * 3)
    found = outputs(model, slice(6, 10), pixels, ids, points, labels)
    return {k: v.flatten()[torch.linspace(0, v.numel() - 1, 64).long()] for k, v in found.items()}


def test_seeded_model_gives_the_same_numbers(golden):
    found = seeded_outputs()
    assert {f"seeded_{k}" for k in found} == {k for k in golden if k.startswith("seeded_")}
    for name, values in found.items():
        torch.testing.assert_close(values, golden[f"seeded_{name}"], **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")
        assert len(values.unique()) > 2, name


def make(folder: Path) -> dict[str, np.ndarray]:
    """What the golden file holds, from a reference folder that passes the comparison."""
    assert max(check_parity(folder).values()) <= 1e-4, "our forward differs from the recording"
    recorded = read_safetensors(folder / "io.safetensors")
    ids = recorded["input_ids"]
    model, image = open_reference(folder, read_json(folder / "config.json"), ids[0].tolist())
    state = read_torch(folder / "official_checkpoint.pt")["model"]
    used = ids.unique()
    shown = torch.linspace(0, len(state[LANGUAGE + "output.weight"]) - 1, len(used)).long()
    kept = {k: v for k, v in state.items() if k.startswith((LANGUAGE, POINTS + "p", POINTS + "not"))}
    kept[LANGUAGE + "model.tok_embeddings.weight"] = state[LANGUAGE + "model.tok_embeddings.weight"][used]
    kept[LANGUAGE + "output.weight"] = state[LANGUAGE + "output.weight"][shown]
    with torch.no_grad():
        tokens = model.image_tokens(model.encode(recorded["pixel_values"]))
    kept |= {k: recorded[k] for k in ("input_ids", "points", "labels")}
    kept |= {f"seeded_{k}": v for k, v in seeded_outputs().items()}
    kept |= {k: state[POINTS + k] for k in ("llm_scale_factor", "llm_bias")}
    kept |= {
        "used": used,
        "image": torch.tensor([image.start, image.stop]),
        "image_tokens": tokens,
        "logits": recorded["logits"][..., shown],
        "sparse_embeddings": recorded["sparse_embeddings"][..., ::4],
        "vlsa_features": recorded["vlsa_features"][BLOCK],
        "dense_embeddings": recorded["dense_embeddings"][BLOCK],
    }
    command = np.array("python tests/unit/checkpoints/test_golden.py FOLDER")
    return {k: v.contiguous().numpy() for k, v in kept.items()} | {"command": command}


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **make(Path(sys.argv[1])))
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes")
