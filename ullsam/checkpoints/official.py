"""The official uLLSAM checkpoint layout, to and from ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ullsam.checkpoints.internlm2 import from_llama, to_llama
from ullsam.checkpoints.sam import sam_config
from ullsam.config import SamConfig
from ullsam.errors import InputError
from ullsam.files import check_names, read_torch, whole
from ullsam.model import ULLSAM

NAMES = {  # beginnings of names: ours -> theirs; the language model's follow in internlm2.py
    "sam.image_encoder.": "vision_model.",
    "sam.prompt_encoder.": "prompt_encoder.",
    "sam.mask_decoder.": "mask_decoder.",
    "projection.mlp.": "mlp1.",
    "vlsa.mlp.": "mlp2.",
    "vlsa.scale": "prompt_encoder.llm_scale_factor",
    "vlsa.shift": "prompt_encoder.llm_bias",
}
LANGUAGE = "language_model."
SEGMENTING = ("prompt_encoder.", "mask_decoder.")  # what checkpoints of stages 1 and 2 do not have
PREPROCESSING = dict(preprocessing="official", placement="center")  # how the official code prepares images


def official_name(name: str) -> str:
    """The official name of a weight of ours outside the language model."""
    for ours, theirs in NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def load_official(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Weights of an official checkpoint ({"model", "optimizer", ..., "args"}) under their own names.

    Returns:
        The weights, mapped from the disk, and how images must be prepared for them (fields of `SamConfig`): the official
        way, or what the checkpoint names itself if `save_official` wrote it.

    What leaks: the authors started from uSAM and do not say which version; `load_sam` lists what each of them has seen.

    Raises:
        InputError: no such file, cut off, could run code, or another kind of checkpoint.
    """
    if Path(path).is_dir():
        raise InputError(f"{path} is a folder; a model that was saved there is loaded with ullsam.load({str(path)!r}).")
    content = read_torch(path)
    state = content["model"] if isinstance(content.get("model"), dict) else content
    state = {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    absent = [part for part in ("vision_model.", LANGUAGE, "mlp1.") if not any(k.startswith(part) for k in state)]
    if absent:
        raise InputError(
            f"{path} is not an official uLLSAM checkpoint (it has no {absent[0]}*); a SAM or uSAM file is "
            "given as sam=, a language model as llm=."
        )
    named = content.get("preprocessing")
    return state, {**PREPROCESSING, **(named if isinstance(named, dict) else {})}


def is_complete(state: dict[str, Tensor]) -> bool:
    """True for a checkpoint of stage 3, False for one of stages 1 and 2, which has no prompt encoder and mask decoder."""
    return any(k.startswith(SEGMENTING) for k in state)


def official_sam_config(state: dict[str, Tensor], path, **settings) -> SamConfig:
    """SAM's settings told from the shapes of a complete official checkpoint."""
    renamed = {k.replace("vision_model.", "image_encoder.", 1): v for k, v in state.items() if k.startswith("vision_model.")}
    return sam_config(renamed | {k: v for k, v in state.items() if k.startswith(SEGMENTING)}, path, **settings)


def from_official(model: ULLSAM, state: dict[str, Tensor], path) -> Iterator[tuple[str, Tensor]]:
    """The weights of an official checkpoint one by one under our names, for `model` (which may be on the meta device).

    Raises:
        InputError: names that are missing or left over; a checkpoint without prompt encoder and mask decoder passes.
    """
    ours = [k for k in model.state_dict() if not k.startswith("llm.")]
    language = {k: v for k, v in state.items() if k.startswith(LANGUAGE)}
    ignore = () if is_complete(state) else SEGMENTING
    check_names(map(official_name, ours), set(state) - set(language), path, ignore)
    yield from ((k, state[official_name(k)]) for k in ours if official_name(k) in state)
    yield from (("llm.lm." + k, v) for k, v in to_llama(language, model.llm.lm, path, LANGUAGE))


def to_official(model: ULLSAM) -> dict[str, Tensor]:
    """All weights of `model` under the official names.

    Raises:
        InputError: the model has parts that the official layout has no place for.
    """
    c = model.config
    fits = {
        "it has no language model": model.llm is not None,
        f"its VLSA variant is {c.vlsa!r}": c.vlsa == "paper" and getattr(model.vlsa, "scale", None) is not None,
        "its SAM has other parts than SAM's own": type(c.sam) is SamConfig,
        "its language model has LoRA adapters": not c.llm or not c.llm.lora_rank,
        "its language model is no Llama": model.llm is None or getattr(model.llm.lm.config, "model_type", "") == "llama",
    }
    for reason, fine in fits.items():
        if not fine:
            raise InputError(f"Model {c.name} does not fit the official layout: {reason}; only the paper's model does.")
    state = {official_name(k): v for k, v in model.state_dict().items() if not k.startswith("llm.")}
    return state | dict(from_llama(model.llm.lm, LANGUAGE))


def save_official(model: ULLSAM, path: str | Path, epoch: int = 0, step: int = 0) -> None:
    """Writes `model` as an official checkpoint, which names how images must be prepared; whole or not at all."""
    c = model.config.sam
    preprocessing = {k: getattr(c, k) for k in PREPROCESSING}
    with whole(path) as part:
        torch.save({"model": to_official(model), "epoch": epoch, "step": step, "preprocessing": preprocessing}, part)
