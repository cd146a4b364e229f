"""The language half: loads a causal language model with its tokenizer, and runs it on text around image tokens."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ullsam.accel.weights16 import HalfLinear, widen_in_use
from ullsam.config import LlmConfig
from ullsam.errors import InputError, reason
from ullsam.files import check_names, check_shapes

FOLDERS: dict[str, Callable[[], Path]] = {}  # names that stand for a folder which a room of the package makes
OPENERS: list[Callable] = []  # (folder or hub name, dtype) -> (model, tokenizer), or None where it is not theirs
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LanguageModel(nn.Module):
    """A causal language model, its tokenizer and the chat template with a place for image tokens.

    The sequence is: constant text, N image tokens, question, answer. Being causal, the states at the image tokens depend
    on the image alone. Letters: B images, N image tokens, D width, L text tokens.
    """

    def __init__(self, lm: nn.Module, tokenizer, config: LlmConfig):
        super().__init__()
        self.lm, self.tokenizer, self.config = lm, tokenizer, config

    @property
    def dim(self) -> int:
        """D, the width of the hidden states."""
        return self.lm.config.hidden_size

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, special tokens written out included."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def embed(self, ids: list[int], batch: int) -> Tensor:
        """Embeddings (batch, L, D) of the same ids for every image."""
        weight = self.lm.get_input_embeddings().weight
        x = self.lm.get_input_embeddings()(torch.tensor(ids, device=weight.device))  # (L, D)
        return x.expand(batch, -1, -1)

    def hidden(self, image_tokens: Tensor) -> Tensor:
        """Last hidden states, after the final norm, at the image tokens: (B, N, D) -> (B, N, D)."""
        before = self.embed(self.ids(self.config.before_image), len(image_tokens))
        x = torch.cat([before, image_tokens.to(before.dtype)], dim=1)  # (B, L + N, D)
        states = self.lm.model(inputs_embeds=x, use_cache=False).last_hidden_state
        return states[:, before.shape[1] :].to(image_tokens.dtype)

    def caption_loss(self, image_tokens: Tensor, answers: list[str], questions: list[str] | None = None) -> Tensor:
        """Mean cross-entropy of the answers' tokens (and of the token that ends them), given image and question."""
        return self.hidden_and_loss(image_tokens, answers, questions)[1]

    def hidden_and_loss(
        self, image_tokens: Tensor, answers: list[str], questions: list[str] | None = None
    ) -> tuple[Tensor, Tensor]:
        """`hidden` and `caption_loss` for the price of one pass: what follows the image cannot change its states."""
        before, text = self.embed(self.ids(self.config.before_image), len(answers)), self.lm.get_input_embeddings()
        ids, is_answer = (x.to(before.device) for x in self._text_batch(questions or [""] * len(answers), answers))
        x = torch.cat([before, image_tokens.to(before.dtype), text(ids)], dim=1)  # (B, L, D)
        states = self.lm.model(inputs_embeds=x, use_cache=False).last_hidden_state
        predicting = states[:, -ids.shape[1] - 1 : -1][is_answer]  # the state before a token predicts it
        loss = F.cross_entropy(self.lm.lm_head(predicting).float(), ids[is_answer])
        first = before.shape[1]
        return states[:, first : first + image_tokens.shape[1]].to(image_tokens.dtype), loss

    def _text_batch(self, questions: list[str], answers: list[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, L), padded on the right (a causal model does not look there), and where the answers stand."""
        rows = [(self.ids(self._after(q)), self.ids(a + self.config.end)) for q, a in zip(questions, answers, strict=True)]
        length = max(len(q) + len(a) for q, a in rows)
        ids, is_answer = (torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.bool))
        for i, (q, a) in enumerate(rows):
            ids[i, : len(q) + len(a)] = torch.tensor(q + a)
            is_answer[i, len(q) : len(q) + len(a)] = True
        return ids, is_answer

    def prompt(self, image_tokens: Tensor, question: str | None) -> Tensor:
        """Embeddings (B, L, D) of all that stands before an answer: text, image tokens (B, N, D), text with the question."""
        before, after = (
            self.embed(self.ids(x), len(image_tokens)) for x in (self.config.before_image, self._after(question))
        )
        return torch.cat([before, image_tokens.to(before), after], dim=1)

    def _after(self, question: str | None) -> str:
        question = f"\n{question}" if question else ""
        return self.config.after_image + question + self.config.answer

    @torch.no_grad()
    def generate(
        self, image_tokens: Tensor, question: str | None = None, max_new_tokens: int = 96, on_text=None, **options
    ) -> list[str]:
        """Greedy answers of B images to one question, with a KV cache; `options` go to transformers' generate.

        With one image, `on_text` is called with the answer so far after each token.
        """
        if on_text is not None:
            options["streamer"] = _Growing(self.tokenizer, on_text)
        x = self.prompt(image_tokens, question)
        end = self.ids(self.config.end)[-1]
        mask = torch.ones(x.shape[:2], dtype=torch.long, device=x.device)
        ids = self.lm.generate(
            inputs_embeds=x,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
            **options,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def save(self, folder: str | Path) -> None:
        """Writes the settings and the tokenizer, without the weights, each file whole; `open_saved` reads them.

        Raises:
            InputError: the folder cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as work:
                self.lm.config.save_pretrained(work)
                self.tokenizer.save_pretrained(work)
                for file in Path(work).iterdir():
                    os.replace(file, folder / file.name)
        except OSError as error:
            raise InputError(f"{folder} could not be written ({error}); is the disk full or write-protected?") from error

    def merge_lora(self, merged: bool = True) -> None:
        """Folds LoRA adapters into the weights they adapt (faster), or takes them out again (to train them).

        Weights in half precision are shared with other processes and exact as they are: adapters stay beside them.
        """
        for module in self.lm.modules():
            if hasattr(module, "lora_A") and module.merged != merged and not isinstance(module.base_layer, HalfLinear):
                module.merge() if merged else module.unmerge()


class _Growing:
    """What transformers' generate hands its tokens to, one after the other: passes the text so far on."""

    def __init__(self, tokenizer, on_text):
        self.tokenizer, self.on_text, self.ids = tokenizer, on_text, []

    def put(self, ids: Tensor) -> None:
        self.ids += ids.flatten().tolist()
        self.on_text(self.tokenizer.decode(self.ids, skip_special_tokens=True).strip())

    def end(self) -> None:
        """All tokens have been seen."""


def is_built_in(name: str) -> bool:
    """Whether the language model comes with the package, so that a saved model need not hold it."""
    return name == "debug" or name in FOLDERS


def load_llm(
    config: LlmConfig, pretrained: bool = True, half: bool = False, dtype: torch.dtype = torch.float32
) -> LanguageModel:
    """Loads the language model that `config` names, on the CPU, with fresh LoRA adapters if it asks for them.

    Args:
        config: "debug" is a two-layer random Llama with a byte tokenizer, "smollm2" the tiny model's SmolLM2-135M-Instruct,
            all else a Hugging Face name or folder.
        pretrained: False gives random weights of the same sizes (for tests of size and speed).
        half: leaves the weights on disk in the floats of their file and computes in float32, see accel/weights16.py; else
            they are read as `dtype`.
        dtype: of weights that are not left on disk.

    Raises:
        InputError: the model is not there, with what to do.
    """
    if config.name == "debug":
        lm, tokenizer = debug_llm()
    else:
        folder = FOLDERS.get(config.name, lambda: config.name)()
        found = (opener(folder, dtype) for opener in OPENERS if pretrained and config.name not in FOLDERS)
        opened = next((x for x in found if x is not None), None)
        lm, tokenizer = opened or open_transformers(folder, "auto" if half else dtype, pretrained)
        lm = widen_in_use(lm) if half else lm
    return as_language_model(add_lora(lm, config) if config.lora_rank else lm, tokenizer, config)


def as_language_model(lm: nn.Module, tokenizer, config: LlmConfig) -> LanguageModel:
    """A causal model with its tokenizer as a `LanguageModel` in which nothing is trained yet."""
    return LanguageModel(lm.eval().requires_grad_(False), tokenizer, config)


def open_saved(folder: str | Path, config: LlmConfig) -> LanguageModel:
    """A language model without memory for its weights, from what `LanguageModel.save` wrote.

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
    return as_language_model(empty_lm(sizes), tokenizer, config)


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
