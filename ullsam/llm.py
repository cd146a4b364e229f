"""The language half: loads a causal language model with its tokenizer, and runs it on text around image tokens."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ullsam.accel.weights16 import HalfLinear
from ullsam.config import LlmConfig
from ullsam.errors import InputError
from ullsam.pretrained import add_lora, find_lm, open_described
from ullsam.types import LanguageStates, per_instance

Row = tuple[list[int], list[int], list[int]]  # token ids of a text: what stands before the words, the words, what follows


class ImageMemory(NamedTuple):
    """What a language model keeps of B images that it has read."""

    states: LanguageStates  # without words
    cache: list[tuple[Tensor, Tensor]]  # keys and values of each layer, up to where words would stand


class LanguageModel(nn.Module):
    """A causal language model, its tokenizer and the chat template with a place for image tokens.

    The sequence is: constant text (or words), N image tokens, question (or words), answer. Being causal, the states at the
    image tokens depend on the image and the text before it alone. Letters: B images, N image tokens, D width, L tokens.
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

    def read(
        self,
        image_tokens: Tensor,
        words: Sequence[str | None] | None = None,
        reads: str = "before",
        layers: Sequence[int] = (),
        memory: ImageMemory | None = None,
    ) -> LanguageStates:
        """Hidden states, after the final norm, at B images' tokens and at the words about each.

        Args:
            image_tokens: (B, N, D).
            words: one text per image, or several for each image in turn (B then counts the texts in what is returned);
                None is the constant instruction, or, after the image, what closes it.
            reads: whether words stand "before" the image or "after" it, where its own states do not depend on them.
            layers: numbers of further layers whose states are wanted, 1 for the first.
            memory: what `remember` kept of the same images and layers, for words after them.
        """
        texts = tuple(words or [None] * len(image_tokens))
        if len(texts) > len(image_tokens) > 0 and reads == "after" and memory is None:
            memory = self.remember(image_tokens, layers)
        image_tokens = per_instance(image_tokens, len(texts))
        if reads == "before":
            return self._read_all(image_tokens, texts, [self._before(x) for x in texts], None, layers)
        rows = [self._after(x) for x in texts]
        if memory is None or any(texts) != all(texts):
            return self._read_all(image_tokens, texts, [self._before(None)] * len(texts), rows, layers)
        known = memory.states.map(lambda _, x: per_instance(x, len(texts)))
        if not any(texts):
            return replace(known, valid=per_instance(known.valid, len(texts)), texts=texts)
        from transformers import DynamicCache

        rows = [([], phrase, []) for _, phrase, _ in rows]
        cache = DynamicCache([[per_instance(x, len(texts)) for x in pair] for pair in memory.cache])
        found = self._states(self._embed_rows(rows), layers, cache=cache)
        return _collect(found, {0: known.image} | {n: x.image for n, x in known.layers.items()}, texts, rows, 0)

    def remember(self, image_tokens: Tensor, layers: Sequence[int] = ()) -> ImageMemory:
        """Reads B images and what stands between them and words, so that words cost their own tokens only (a KV cache)."""
        from transformers import DynamicCache

        count, cache = len(image_tokens), DynamicCache()
        (opening, closing, _), (asking, *_) = self._after(None), self._after("")
        rows = [(opening, closing, asking[len(closing) :])] * count
        none, before = (None,) * count, [self._before(None)] * count
        states = self._read_all(image_tokens, none, before, rows, layers, cache)
        return ImageMemory(states, [(layer.keys, layer.values) for layer in cache.layers])

    def _read_all(self, image_tokens, texts, before, after, layers, cache=None) -> LanguageStates:
        """One pass over the text before the images, their tokens and the text after them; the words stand in `after`, where
        it is given, else in `before`."""
        head, n = self._embed_rows(before, left=True), image_tokens.shape[1]
        parts = [head, image_tokens.to(head.dtype), *([self._embed_rows(after)] if after else [])]
        x, start = torch.cat(parts, dim=1), head.shape[1]  # (B, L, D)
        padding = torch.tensor([start - sum(map(len, row)) for row in before], device=x.device)[:, None]  # (B, 1)
        mask = (torch.arange(x.shape[1], device=x.device) >= padding).long() if padding.any() else None
        found = self._states(x, layers, mask, cache)
        images = {n_: y[:, start : start + n].to(image_tokens.dtype) for n_, y in found.items()}
        return _collect(found, images, texts, after or before, start + n if after else padding[:, 0])

    def _states(self, x: Tensor, layers: Sequence[int] = (), mask: Tensor | None = None, cache=None) -> dict[int, Tensor]:
        """States (B, L, D) of embeddings (B, L, D): of the last layer under 0, and of further layers."""
        wanted, depth = {"output_hidden_states": True} if layers else {}, self.lm.config.num_hidden_layers
        if layers and not 1 <= min(layers) <= max(layers) <= depth:
            raise InputError(f"The language model has the layers 1 to {depth}; layers is {tuple(layers)}.")
        out = self.lm.model(None, mask, None, cache, x, use_cache=cache is not None, **wanted)
        return {0: out.last_hidden_state, **{n: out.hidden_states[n] for n in layers}}

    def _before(self, text: str | None) -> Row:
        c = self.config
        if text is None:
            return [], self.ids(c.before_image), []
        head, found, tail = c.before_image.partition(c.instruction)
        if not found:
            raise InputError(f"before_image does not hold the instruction {c.instruction!r}, whose place words take.")
        return self.ids(head + c.request), self.ids(f" {text}"), self.ids(tail)

    def _after(self, text: str | None) -> Row:
        c = self.config
        if text is None:
            return [], self.ids(c.after_image), []
        return self.ids(c.after_image) + self.ids(f"\n{c.request}"), self.ids(f" {text}"), []

    def _embed_rows(self, rows: Sequence[Row], left: bool = False) -> Tensor:
        """Embeddings (B, L, D) of one text per image, padded on the right or the left."""
        ids = [sum(row, []) for row in rows]
        length = max(map(len, ids))
        ids = [[0] * (length - len(x)) + x if left else x + [0] * (length - len(x)) for x in ids]
        embeddings = self.lm.get_input_embeddings()
        return embeddings(torch.tensor(ids, device=embeddings.weight.device))

    def caption_loss(self, image_tokens: Tensor, answers: list[str], questions: list[str] | None = None) -> Tensor:
        """Mean cross-entropy of the answers' tokens (and of the token that ends them), given image and question."""
        return self.read_and_loss(image_tokens, answers, questions)[1]

    def read_and_loss(
        self,
        image_tokens: Tensor,
        answers: list[str],
        questions: list[str] | None = None,
        reads: str = "before",
        layers: Sequence[int] = (),
    ) -> tuple[LanguageStates, Tensor]:
        """`read` without words and `caption_loss` for the price of one pass: what follows cannot change earlier states."""
        count, n = len(answers), image_tokens.shape[1]
        before, after = self._before(None), self._after(None)
        head, text = self._embed_rows([before] * count), self.lm.get_input_embeddings()
        ids, is_answer = (x.to(head.device) for x in self._text_batch(questions or [""] * count, answers))
        x = torch.cat([head, image_tokens.to(head.dtype), text(ids)], dim=1)  # (B, L, D)
        found, start = self._states(x, layers), head.shape[1]
        predicting = found[0][:, -ids.shape[1] - 1 : -1][is_answer]  # the state before a token predicts it
        loss = F.cross_entropy(self.lm.lm_head(predicting).float(), ids[is_answer])
        images = {i: y[:, start : start + n].to(image_tokens.dtype) for i, y in found.items()}
        row, first = (before, 0) if reads == "before" else (after, start + n)
        return _collect(found, images, (None,) * count, [row] * count, first), loss

    def _text_batch(self, questions: list[str], answers: list[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, L), padded on the right (a causal model does not look there), and where the answers stand."""
        rows = [(self.ids(self._asked(q)), self.ids(a + self.config.end)) for q, a in zip(questions, answers, strict=True)]
        length = max(len(q) + len(a) for q, a in rows)
        ids, is_answer = (torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.bool))
        for i, (q, a) in enumerate(rows):
            ids[i, : len(q) + len(a)] = torch.tensor(q + a)
            is_answer[i, len(q) : len(q) + len(a)] = True
        return ids, is_answer

    def prompt(self, image_tokens: Tensor, question: str | None) -> Tensor:
        """Embeddings (B, L, D) of all that stands before an answer: text, image tokens (B, N, D), text with the question."""
        before, after = (
            self.embed(self.ids(x), len(image_tokens)) for x in (self.config.before_image, self._asked(question))
        )
        return torch.cat([before, image_tokens.to(before), after], dim=1)

    def _asked(self, question: str | None) -> str:
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


def _collect(found: dict, images: dict, texts: tuple, rows: Sequence[Row], start: Tensor | int) -> LanguageStates:
    """Picks the words' states out of those of a text, which begins at position `start` of `found`, layer by layer."""
    device = found[0].device
    first = torch.tensor([len(row[0]) for row in rows], device=device) + start  # (B,)
    counts = torch.tensor([len(row[1]) for row in rows], device=device)
    steps = torch.arange(int(counts.max()), device=device)
    valid = steps < counts[:, None]  # (B, T)
    index = torch.where(valid, first[:, None] + steps, 0)[..., None]  # (B, T, 1)
    dtype = images[0].dtype
    words = {n: (x.gather(1, index.expand(-1, -1, x.shape[2])) * valid[..., None]).to(dtype) for n, x in found.items()}
    further = {n: LanguageStates(images[n], words[n], valid, texts) for n in found if n}
    return LanguageStates(images[0], words[0], valid, texts, further)


class _Growing:
    """What transformers' generate hands its tokens to, one after the other: passes the text so far on."""

    def __init__(self, tokenizer, on_text):
        self.tokenizer, self.on_text, self.ids = tokenizer, on_text, []

    def put(self, ids: Tensor) -> None:
        self.ids += ids.flatten().tolist()
        self.on_text(self.tokenizer.decode(self.ids, skip_special_tokens=True).strip())

    def end(self) -> None:
        """All tokens have been seen."""


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
    lm, tokenizer = find_lm(config, pretrained, half, dtype)
    return as_language_model(add_lora(lm, config) if config.lora_rank else lm, tokenizer, config)


def as_language_model(lm: nn.Module, tokenizer, config: LlmConfig) -> LanguageModel:
    """A causal model with its tokenizer as a `LanguageModel` in which nothing is trained yet."""
    return LanguageModel(lm.eval().requires_grad_(False), tokenizer, config)


def open_saved(folder: str | Path, config: LlmConfig) -> LanguageModel:
    """A language model without memory for its weights, from what `LanguageModel.save` wrote.

    Raises:
        InputError: the folder does not describe a language model.
    """
    lm, tokenizer = open_described(folder)
    return as_language_model(lm, tokenizer, config)
