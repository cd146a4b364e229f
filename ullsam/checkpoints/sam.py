"""SAM's weights from the layouts they come in: segment_anything's files, uSAM's, and transformers' folders."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from ullsam.config import SamConfig
from ullsam.errors import InputError, reason
from ullsam.files import assign, cast, local_folder, read_safetensors, read_torch
from ullsam.sam import SAM, build_sam

SIZES = {"vit_b": (768, 12), "vit_l": (1024, 24), "vit_h": (1280, 32)}  # name -> (width, blocks)
CONSTANTS = ("pixel_mean", "pixel_std")  # some files store them; they are settings, not weights

OTHER_MODELS = {  # a part of a name that only this kind of file has
    "image_encoder.trunk.": "SAM 2",
    "mask_decoder.hf_": "SAM-HQ",
    "image_encoder.patch_embed.seq.": "MobileSAM (vit_t)",
    "language_model.": "uLLSAM (give it as ullsam=)",
}

# transformers' names -> segment_anything's, applied one after the other
RENAMES = [
    (r"^vision_encoder\.", "image_encoder."),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"\.neck\.conv1\.", ".neck.0."),
    (r"\.neck\.layer_norm1\.", ".neck.1."),
    (r"\.neck\.conv2\.", ".neck.2."),
    (r"\.neck\.layer_norm2\.", ".neck.3."),
    (
        r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"\.layer_norm(\d|_final_attn)\.", r".norm\1."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"(_head|_mlps\.\d)\.layers\.0\.", r"\1.layers.1."),
    (r"(_head|_mlps\.\d)\.proj_in\.", r"\1.layers.0."),
    (r"(_head|_mlps\.\d)\.proj_out\.", r"\1.layers.2."),
]


def load_sam(
    source: str | Path, kind: str | None = None, dtype: torch.dtype | None = torch.float32, device="cpu"
) -> tuple[SAM, SamConfig]:
    """A SAM with the weights of a file or folder, and its settings, told from the shapes of the weights.

    Args:
        source: a SAM `.pth` (vit_b, vit_l, vit_h; MedSAM's too), a uSAM `.pt` or `.pth` (its decoder for automatic
            segmentation, if there is one, is left out), or transformers' layout: a folder such as a copy of
            `facebook/sam-vit-base`, or its name on the hub.
        kind: "vit_b", "vit_l" or "vit_h" if the file must be of that kind.
        dtype: of the weights; None keeps the file's.
        device: where they go.

    What leaks: uSAM's light-microscopy generalist ("vit_b_lm") was trained on CellPose, OmniPose and OrgaSegment since
    its version 3, and the current download is newer than that; version 2 was not. The electron-microscopy generalist
    ("vit_b_em_organelles") saw MitoEM, MitoLab and Platynereis nuclei. Scores on sets that the weights have seen are
    not out-of-domain scores, whoever fine-tuned them afterwards.

    Raises:
        InputError: the file is missing, cut off, could run code, holds another model or kind, or its names or shapes
            do not fit.
    """
    state = read_sam(source)
    config = sam_config(state, source)
    check_kind(config, kind, source)
    with torch.device("meta"):
        sam = build_sam(config)
    assign(sam, cast(state.items(), dtype, device), source)
    return sam.to(device).eval(), config


def check_kind(config: SamConfig, kind: str | None, source) -> None:
    """Raises InputError if `kind` is given and the settings are not those of that kind."""
    if kind is not None and kind not in SIZES:
        raise InputError(f"There is no SAM kind {kind!r}; choose one of {', '.join(SIZES)}.")
    sizes = (config.embed_dim, config.depth)
    if kind is not None and SIZES[kind] != sizes:
        names = {v: k for k, v in SIZES.items()}
        found = names.get(sizes, f"a SAM of width {config.embed_dim} with {config.depth} blocks")
        raise InputError(f"{source} holds {found}, not {kind}; give the {kind} file.")


def read_sam(source: str | Path) -> dict[str, Tensor]:
    """SAM's weights under segment_anything's names, from any layout that `load_sam` takes."""
    path = Path(source)
    if not path.is_file():
        state = read_safetensors(local_folder(source))
    else:
        state = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    for name in ("model_state", "model"):  # uSAM's files may hold a decoder beside it, training scripts' an optimiser
        state = state[name] if isinstance(state.get(name), dict) else state
    state = {str(k): v for k, v in state.items()}
    if any(k.startswith("vision_encoder.") for k in state):
        state = from_transformers(state)
    state = {k.removeprefix("sam."): v for k, v in state.items() if isinstance(v, Tensor) and k not in CONSTANTS}
    for part, name in OTHER_MODELS.items():
        if any(part in key for key in state):
            raise InputError(f"{source} is a checkpoint of {name}, not of SAM; give a vit_b, vit_l or vit_h of SAM or uSAM.")
    if "image_encoder.pos_embed" not in state:
        first = ", ".join(sorted(state)[:2]) or "no tensors"
        raise InputError(f"{source} is not a SAM checkpoint (it has {first}, no image_encoder.pos_embed); give one.")
    return state


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of transformers' SamModel under segment_anything's names."""
    for pattern, replacement in RENAMES:
        state = {re.sub(pattern, replacement, k): v for k, v in state.items()}
    return state


def sam_config(state: dict[str, Tensor], source, **settings) -> SamConfig:
    """The settings of a SAM told from the shapes of its weights, with `settings` for what no shape tells.

    Raises:
        InputError: a weight whose shape is needed is missing, or has a shape that no SAM has.
    """
    try:
        return _sizes(state, **settings)
    except KeyError as error:
        raise InputError(f"{source} is missing {error.args[0]}; it was made for another model or variant.") from error
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        why = reason(error).rstrip(".")
        raise InputError(f"{source} has weights of shapes that no SAM has ({why}); get it again.") from error


def _sizes(state: dict[str, Tensor], **settings) -> SamConfig:
    _, grid, _, width = state["image_encoder.pos_embed"].shape
    patch = state["image_encoder.patch_embed.proj.weight"].shape[-1]
    out_chans = state["image_encoder.neck.0.weight"].shape[0]
    depth = 1 + max(int(k.split(".")[2]) for k in state if k.startswith("image_encoder.blocks."))
    tables = [state[f"image_encoder.blocks.{i}.attn.rel_pos_h"].shape for i in range(depth)]  # (2 * side - 1, head width)
    everywhere = tuple(i for i, (length, _) in enumerate(tables) if length == 2 * grid - 1)
    windows = Counter((length + 1) // 2 for i, (length, _) in enumerate(tables) if i not in everywhere)
    quality = state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0]
    return SamConfig(
        image_size=grid * patch,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=width // tables[0][1],
        global_attn_indexes=everywhere,
        window_size=windows.most_common(1)[0][0] if windows else 14,
        out_chans=out_chans,
        decoder_mlp_dim=state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
        mask_in_chans=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        iou_head_dim=0 if quality == out_chans else quality,
        **settings,
    )
