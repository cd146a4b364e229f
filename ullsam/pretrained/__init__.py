"""Causal language models and their tokenizers from transformers: read strictly, no code of their folders is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ullsam.accel.weights16 import widen_in_use
from ullsam.config import LlmConfig
from ullsam.errors import InputError, reason
from ullsam.files import check_names, check_shapes

FOLDERS: dict[str, Callable[[], Path]] = {}  # names that stand for a folder which a room of the package makes
OPENERS: list[Callable] = []  # (folder or hub name, dtype) -> (model, tokenizer), or None where it is not theirs
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def is_built_in(name: str) -> bool:
    """Whether the language model comes with the package, so that a saved model need not hold it."""
    return name == "debug" or name in FOLDERS


def find_lm(config: LlmConfig, pretrained: bool = True, half: bool = False, dtype: torch.dtype = torch.float32):
    """The causal model that `config` names, without adapters, and its tokenizer; arguments and errors as `llm.load_llm`."""
    if config.name == "debug":
        return debug_llm()
    folder = FOLDERS.get(config.name, lambda: config.name)()
    found = (opener(folder, dtype) for opener in OPENERS if pretrained and config.name not in FOLDERS)
    opened = next((x for x in found if x is not None), None)
    lm, tokenizer = opened or open_transformers(folder, "auto" if half else dtype, pretrained)
    return widen_in_use(lm) if half else lm, tokenizer


def open_described(folder: str | Path):
    """A causal model without memory for its weights, and its tokenizer, from their settings in a folder.

    Raises:
        InputError: the folder does not describe a language model.
    """
    from transformers import AutoConfig, PreTrainedTokenizerFast

    try:
        sizes = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain exceptions
        why = reason(error)
        raise InputError(f"{folder} does not describe a language model ({why}); copy the whole folder again.") from error
    return empty_lm(sizes), tokenizer


def open_transformers(folder: str | Path, dtype: torch.dtype | str = torch.float32, pretrained: bool = True):
    """A causal language model of transformers and its tokenizer; code that lies in the folder is never run.

    Args:
        folder: folder or hub name; dtype: of the weights, "auto": the file's; pretrained: False gives random weights.

    Raises:
        InputError: it is not there, damaged, or needs code of its own.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if not pretrained:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False), tokenizer
    except (OSError, ValueError) as error:
        why = "it needs code of its own, which is never run" if "trust_remote_code" in str(error) else reason(error)
        raise InputError(
            f"The language model {folder} could not be loaded ({why}); check its name, or download it and pass its folder."
        ) from error
    return load_strictly(AutoModelForCausalLM, folder, dtype=dtype), tokenizer


def load_strictly(kind, folder: str | Path, partial: bool = False, remedy: str = "", **options) -> nn.Module:
    """A model of transformers whose weights all come from safetensors; by itself transformers leaves some at random.

    Args:
        kind: a class with `from_pretrained`, such as AutoModelForCausalLM.
        folder: a folder or hub name.
        partial: the model is a part of what the files hold, so names that are left over are fine.
        remedy: what to do where transformers cannot load it; options: go to `from_pretrained`.

    Raises:
        InputError: names that are missing or left over, or shapes that do not fit, or what transformers says.
    """
    strict = dict(output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True)  # it tells, we decide
    try:
        with quiet_transformers():
            model, info = kind.from_pretrained(folder, trust_remote_code=False, **strict, **options)
    except Exception as error:  # transformers, safetensors and pickle raise many kinds
        remedy = remedy or "download the whole repository of the model again"
        raise InputError(f"The weights in {folder} could not be loaded ({reason(error)}); {remedy}.") from error
    check_names(info["missing_keys"], () if partial else info["unexpected_keys"], folder)
    check_shapes(((name, *map(tuple, shapes)) for name, *shapes in info["mismatched_keys"]), folder)
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and tables of weights, which would stand between a notebook's outputs."""
    from transformers.utils import logging

    had_bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bar:
            logging.enable_progress_bar()


def empty_lm(config) -> nn.Module:
    """A causal language model of transformers without memory for its weights; its constants are there."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    rotary = lm.model.rotary_emb
    lm.model.rotary_emb = type(rotary)(config)  # its frequencies are computed, not stored
    return lm


def add_lora(lm: nn.Module, config: LlmConfig) -> nn.Module:
    """The language model with adapters of the config's rank, in float32 and without effect until they are trained."""
    from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=LORA_TARGETS)
    lm = inject_adapter_in_model(lora, lm)
    for name, parameter in lm.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()  # peft gives them the type of the weights they adapt
    return lm


def debug_llm():
    """A random Llama of two layers and a tokenizer with one token per byte: no file needed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokens.pre_tokenizer, tokens.decoder = (pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())
    tokens.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token=special[0], pad_token=special[0], additional_special_tokens=special[1:]
    )
    config = LlamaConfig(
        vocab_size=len(alphabet),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config), tokenizer
