"""Any vision-language model of Hugging Face as a participant in MicroVQA, beside ours.

Letters: k images of a question, c choices, T tokens of a choice, L tokens before it.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ullsam.data.io import to_rgb8
from ullsam.data.questions import Question
from ullsam.errors import InputError, reason
from ullsam.files import WEIGHTS, local_folder, read_json
from ullsam.pretrained import load_strictly

FILES = (*WEIGHTS, "*.jinja", "*.txt", "*.model")  # chat template and tokenizer come in several files


class VisionLanguageModel:
    """A model of transformers' AutoModelForImageTextToText that answers through its own chat template."""

    def __init__(self, model, processor, name: str):
        self.model, self.processor, self.name = model.eval(), processor, name
        if not (getattr(processor, "chat_template", None) or processor.tokenizer.chat_template):
            raise InputError(f"{name} has no chat template, so it cannot be asked; give its instruct version.")

    @classmethod
    def load(cls, name: str | Path, device: str | torch.device = "cpu") -> VisionLanguageModel:
        """A model by folder or hub name, in the floats of its files; code in the folder is not run.

        Raises:
            InputError: no such folder or repository, no network, or a model that does not take images and text.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = local_folder(name, FILES)
        read_json(folder / "config.json")
        remedy = "give one that transformers knows as image-text-to-text, with all its files"
        try:
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise InputError(f"{name} could not be loaded as image-text-to-text ({reason(error)}); {remedy}.") from error
        options = {"partial": True, "remedy": remedy, "dtype": "auto"}
        model = load_strictly(AutoModelForImageTextToText, folder, **options)
        if not hasattr(processor, "tokenizer"):
            raise InputError(f"{folder} lacks a tokenizer; download the whole repository of the model.")
        return cls(model.to(device), processor, Path(name).name)

    @torch.no_grad()
    def score(self, question: Question, use_image: bool = True) -> Tensor:
        """Mean log-likelihood per token of each choice, and of the token that ends it, as the answer: float32 (c,)."""
        inputs = self._inputs(question, question.question, use_image)
        end = self.model.generation_config.eos_token_id
        end = self.processor.tokenizer.eos_token_id if end is None else end
        end = end[0] if isinstance(end, list) else end
        kept = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        scores = []
        for choice in question.choices:
            answer = self.processor.tokenizer(choice, add_special_tokens=False).input_ids + [end]
            ids = torch.tensor([answer], device=self.model.device)  # (1, T)
            more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}  # token types and the like get zeros
            longer = {  # (1, L) -> (1, L + T)
                k: torch.cat([x, more.get(k, torch.zeros_like(ids)).to(x.dtype)], 1)
                for k, x in inputs.items()
                if x.shape == inputs["input_ids"].shape
            }
            fewer = {"logits_to_keep": len(answer) + 1} if kept else {}
            logits = self.model(**inputs | longer | fewer).logits[0].float()
            logits = logits[-len(answer) - 1 : -1]  # the state before a token predicts it
            scores.append(logits.log_softmax(-1).gather(-1, ids[0, :, None]).mean())  # (T, vocabulary) -> (T, 1) -> ()
        return torch.stack(scores).cpu()

    @torch.no_grad()
    def write(self, question: Question, text: str, use_image: bool = True, max_new_tokens: int = 64) -> str:
        """The model's greedy answer to `text` about the images of the question."""
        inputs = self._inputs(question, text, use_image)
        ids = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return self.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    def _inputs(self, question: Question, text: str, use_image: bool) -> dict[str, Tensor]:
        """Everything before the answer: k images, the text, and the start of the model's turn."""
        from PIL import Image

        images = [Image.fromarray(to_rgb8(np.asarray(image))) for image in question.images_list if use_image]
        content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
        batch = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        floats = next(self.model.parameters()).dtype
        return {k: x.to(self.model.device, floats if x.is_floating_point() else None) for k, x in batch.items()}
