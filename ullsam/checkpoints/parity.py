"""Does our forward give the official one's numbers? Compares with a folder of recorded inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from ullsam.checkpoints.internlm2 import llama_config
from ullsam.checkpoints.official import from_official, load_official, official_sam_config
from ullsam.config import LlmConfig, ModelConfig, SamConfig
from ullsam.errors import InputError
from ullsam.files import check_shapes, read_json, read_safetensors
from ullsam.llm import LanguageModel
from ullsam.model import ULLSAM
from ullsam.pretrained import empty_lm
from ullsam.sam import encode_prompts
from ullsam.types import Prompts
from ullsam.vlsa import pixel_unshuffle, to_grid

CHECKPOINT, RECORDED, SETTINGS = "official_checkpoint.pt", "io.safetensors", "config.json"
TOLERANCE = 1e-4
INPUTS = ("pixel_values", "input_ids", "points", "labels")


def check_parity(folder: str | Path) -> dict[str, float]:
    """Largest absolute difference between our outputs and the recorded ones, float32.

    Args:
        folder: with config.json (sizes), official_checkpoint.pt, and io.safetensors, which holds the inputs pixel_values
            (1, 3, S, S) as the encoder sees them, input_ids (1, L), points (I, P, 2) in pixels, labels (I, P), and
            any of the outputs that `outputs` names.

    Returns:
        One entry per recorded output.

    Raises:
        InputError: a file is missing or damaged, or the sizes in config.json are not the checkpoint's.
    """
    folder = Path(folder)
    recorded = read_safetensors(folder / RECORDED)
    absent = [name for name in INPUTS if name not in recorded]
    if absent:
        raise InputError(f"{folder / RECORDED} has no {', '.join(absent)}; record the inputs with the outputs.")
    settings = read_json(folder / SETTINGS)
    model, context = open_reference(folder, settings, recorded["input_ids"][0].tolist())
    side = model.config.sam.image_size
    if recorded["pixel_values"].shape[2:] != (side, side):
        size = " x ".join(map(str, recorded["pixel_values"].shape[2:]))
        raise InputError(f"{folder / RECORDED} has an image of {size} pixels, the checkpoint is for {side} x {side}.")
    found = outputs(model, context, *(recorded[name] for name in INPUTS))
    unknown = [name for name in recorded if name not in found and name not in INPUTS]
    if unknown:
        raise InputError(f"{folder / RECORDED} has {', '.join(unknown)}, which is not compared; known: {', '.join(found)}.")
    check_shapes(
        (
            (k, tuple(recorded[k].shape), tuple(x.shape))
            for k, x in found.items()
            if k in recorded and recorded[k].shape != x.shape
        ),
        folder / RECORDED,
    )
    return {name: (x - recorded[name]).abs().max().item() for name, x in found.items() if name in recorded}


def open_reference(folder: Path, settings: dict, ids: list[int]) -> tuple[ULLSAM, slice]:
    """The model of a reference folder, whose prompt is the recorded ids, and where the image stands in them."""
    state, preparation = load_official(folder / CHECKPOINT)
    sam = official_sam_config(state, folder / CHECKPOINT, **preparation)
    _compare_sizes(sam, settings.get("sam", {}), folder / SETTINGS)
    mark = settings.get("img_context_token_id", 92546)
    if mark not in ids:
        raise InputError(f"The recorded input_ids hold no image token ({mark}); record a prompt with an image.")
    image = slice(ids.index(mark), len(ids) - ids[::-1].index(mark))
    before = ids[: image.start]
    lm = empty_lm(llama_config(settings.get("llm", {}), folder / SETTINGS))
    language = LanguageModel(lm, lambda *_, **__: SimpleNamespace(input_ids=before), LlmConfig(name="internlm2"))
    config = ModelConfig(sam=sam, llm=language.config, shuffle_ratio=settings.get("downsample_ratio", 0.5))
    model = ULLSAM.frame(config, language)
    return model.fill(dict(from_official(model, state, folder / CHECKPOINT)), folder / CHECKPOINT), image


def _compare_sizes(sam: SamConfig, named: dict, source: Path) -> None:
    """Raises InputError where config.json names another size than the weights have."""
    decoder = named.get("decoder", {})
    pairs = {k: (getattr(sam, k), named[k]) for k in vars(sam) if k in named}
    pairs["decoder.mlp_dim"] = (sam.decoder_mlp_dim, decoder.get("mlp_dim", sam.decoder_mlp_dim))
    for name, (ours, theirs) in pairs.items():
        if (tuple(theirs) if isinstance(theirs, list) else theirs) != ours:
            raise InputError(f"{source} says {name} {theirs}, but the checkpoint's weights are made for {ours}.")


@torch.no_grad()
def outputs(model: ULLSAM, image: slice, pixels: Tensor, ids: Tensor, points: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Our side of every tensor that a recording may have; the letters are those of `ULLSAM`."""
    features = model.encode(pixels)
    knowledge = model.knowledge(features)  # (1, C, h, w)
    prompts = Prompts(points[None], labels[None].float())
    logits, quality = model.segment(features, prompts, knowledge)
    plain, _ = model.segment(features, prompts)
    tokens = model.image_tokens(features)
    grid = to_grid(model.vlsa.mlp(model.llm.read(tokens).image))  # (1, h/2, w/2, 4C)
    x = model.llm.lm.get_input_embeddings()(ids).clone()  # (1, L, D)
    x[:, image] = tokens
    return {
        "image_embeddings": features.embedding,
        "vlsa_features": pixel_unshuffle(grid, model.config.shuffle_ratio).permute(0, 3, 1, 2),  # (1, C, h, w)
        "dense_embeddings": knowledge.expand(len(points), -1, -1, -1),
        "sparse_embeddings": encode_prompts(model.sam.prompt_encoder, prompts)[0],
        "low_res_masks": logits[0, :, :1],
        "low_res_masks_without_vlk": plain[0, :, :1],
        "iou_predictions": quality[0, :, :1],
        "logits": model.llm.lm(inputs_embeds=x, use_cache=False).logits,  # (1, L, vocabulary), for the whole prompt
    }
