"""The paper's model put together from real checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import ullsam.tiny  # noqa: F401  SmolLM2 may be the language model
from ullsam.checkpoints.internlm2 import is_internlm2, llama_config, load_internlm2, load_tokenizer
from ullsam.checkpoints.official import from_official, is_complete, load_official, official_sam_config
from ullsam.checkpoints.sam import read_sam, sam_config
from ullsam.config import INTERNVL, LlmConfig, ModelConfig
from ullsam.errors import InputError
from ullsam.files import CONFIGS, local_folder, read_json
from ullsam.llm import LanguageModel, as_language_model, load_llm, open_saved
from ullsam.model import ULLSAM
from ullsam.pretrained import add_lora, empty_lm, is_built_in


def load_paper(
    sam: str | Path | None = None,
    llm: str | Path | None = None,
    ullsam: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device="cpu",
    seed: int = 0,
    lora_rank: int = 0,
) -> ULLSAM:
    """The paper's model from real checkpoints; what none of them holds starts with random weights.

    Args:
        sam: SAM or uSAM, see `load_sam`; not with a complete official checkpoint. Mind what uSAM has seen: today's
            "vit_b_lm" was trained on three of the paper's out-of-domain sets (CellPose, OmniPose, OrgaSegment).
        llm: the language model: folder or hub name of InternVL2.5-2B or internlm2_5-1_8b-chat, of any causal language
            model of transformers, or "smollm2". With `ullsam` its settings and tokenizer are enough. InternVL's own
            projection takes features of another width than SAM's, so only its second layer is used to start from.
        ullsam: an official uLLSAM checkpoint; one of stages 1 or 2 has no prompt encoder and mask decoder, and takes
            them from `sam`.
        dtype: of the language model, 95 % of the weights; all else is float32.
        device: where the weights go.
        seed: of the random weights.
        lora_rank: > 0 gives the language model adapters of this rank for stage 2, in float32; what is saved then are the
            adapters, and the language model is read from `llm` again. Not with `ullsam`.

    Returns:
        The model; its settings name the preprocessing that the weights need: official checkpoints were trained on
        0..1 and centred padding, SAM's and uSAM's on SAM's mean and deviation and padding at the bottom right.

    Raises:
        InputError: which file is needed, missing, damaged or of another kind.
    """
    if llm is None:
        raise InputError(
            "The paper's model needs llm=, the folder of InternVL2.5-2B or the name OpenGVLab/InternVL2_5-2B; "
            "with ullsam= its config.json and tokenizer.model are enough."
        )
    if lora_rank and ullsam:
        raise InputError(
            f"Adapters are saved without the language model, and the one of {ullsam} has no folder of its own; "
            "leave the adapters out."
        )
    theirs, settings = load_official(ullsam) if ullsam else ({}, {})
    complete = bool(theirs) and is_complete(theirs)
    if complete and sam is not None:
        raise InputError(f"{ullsam} holds its own SAM; leave sam={sam} out.")
    if sam is None and not complete:
        what = f"{ullsam} has no prompt encoder and mask decoder (stage 1 or 2)" if theirs else "The paper's model needs SAM"
        raise InputError(f"{what}; give a SAM or uSAM file as sam=.")
    plain = {} if complete else read_sam(sam)
    if plain:
        config = sam_config(plain, sam, **settings)
    else:
        config = official_sam_config(theirs, ullsam, **settings)
    language, base = _open_language(llm, not theirs, dtype, device)
    model = ULLSAM.frame(ModelConfig(name="paper", sam=config, llm=language.config), language, seed)
    state = {"sam." + k: v for k, v in plain.items()}
    absent = ("llm.", "projection.", "vlsa.")  # there already: random, or read with the language model
    if theirs:
        state |= dict(from_official(model, theirs, ullsam))
        absent = () if is_complete(theirs) else ("vlsa.scale", "vlsa.shift")
    else:  # of InternVL's projection what fits the shapes of ours
        own = model.projection.mlp.state_dict()
        state |= {"projection.mlp." + k: v for k, v in base.items() if k in own and v.shape == own[k].shape}
    model.fill(state, sam or ullsam, dtype, device, absent)
    if lora_rank:
        model.llm = add_adapters(model.llm, replace(model.llm.config, lora_rank=lora_rank), seed)
        model.config = replace(model.config, llm=model.llm.config)
    return model


def add_adapters(language: LanguageModel, config: LlmConfig, seed: int = 0) -> LanguageModel:
    """The language model with LoRA adapters in float32, whatever its own weights are; they change nothing at first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return as_language_model(add_lora(language.lm, config), language.tokenizer, config)


def _open_language(llm, with_weights: bool, dtype, device) -> tuple[LanguageModel, dict[str, Tensor]]:
    """The language model, its weights on the meta device if they come from elsewhere, and InternVL's projection."""
    config = LlmConfig(name=str(llm))
    if is_built_in(str(llm)):
        return _cast(load_llm(config), dtype, device), {}
    folder = local_folder(llm) if with_weights else local_folder(llm, CONFIGS)
    values = read_json(folder / "config.json")
    if not is_internlm2(values):
        return (_cast(load_llm(config), dtype, device) if with_weights else open_saved(folder, config)), {}
    if with_weights:
        lm, base = load_internlm2(folder, dtype, device)
    else:
        lm, base = empty_lm(llama_config(values, folder / "config.json")), {}
    return as_language_model(lm, load_tokenizer(folder), replace(INTERNVL, name=str(llm))), base


def _cast(language: LanguageModel, dtype, device) -> LanguageModel:
    """Casts the weights alone: the constants of the rotary positions stay exact."""
    for parameter in language.parameters():
        parameter.data = parameter.data.to(device=device, dtype=dtype)
    return language.to(device)
