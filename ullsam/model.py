"""uLLSAM itself: SAM, the projection, the language model and VLSA put together; saving and loading."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from ullsam.config import ModelConfig, preset
from ullsam.data.io import Square, to_rgb8, to_square
from ullsam.data.text import read_text
from ullsam.errors import InputError
from ullsam.files import assign, cast, local_folder, read_safetensors, write_json, write_safetensors
from ullsam.llm import ImageMemory, LanguageModel, load_llm, open_saved
from ullsam.pretrained import is_built_in
from ullsam.sam import build_sam, normalise
from ullsam.types import ImageFeatures, LanguageStates, Prompts, per_instance
from ullsam.vlsa import CentredStates, VisionProjection, VlsaShape, build_vlsa, inject_knowledge

MOST_LETTERS = 200  # of a phrase that is to be segmented


class ULLSAM(nn.Module, PyTorchModelHubMixin):
    """SAM guided by a language model; with `llm=None` or the variant "none" it is a plain SAM (the uSAM baseline).

    Letters: B images, I objects per image, P points, N image tokens, D LLM width, C SAM width, h w feature grid.
    Source: paper, section 3.2 and Fig. 2.
    """

    def __init__(self, config: ModelConfig, sam: nn.Module, llm: LanguageModel | None = None):
        super().__init__()
        self.config, self.sam, self.llm = config, sam, llm
        c = config.sam
        self.projection = self.vlsa = self.centre = None
        if llm is not None:
            self.projection = VisionProjection(c.out_chans, llm.dim, config.shuffle_ratio, config.token_length)
        if llm is not None and config.vlsa != "none":
            shape = VlsaShape(llm.dim, c.out_chans, (c.grid, c.grid), config.shuffle_ratio)
            self.vlsa = build_vlsa(config.vlsa, shape, **config.vlsa_options)
            self.centre = CentredStates(llm.dim, self.vlsa.layers) if config.centred_states else nn.Identity()

    # ---------------------------------------------------------------- the paper's method

    def image_tokens(self, features: ImageFeatures) -> Tensor:
        """M_proj x pix(H_v, 0.5): image tokens (B, N, D) for the language model. No gradient reaches the encoder."""
        self.llm_or_raise()
        return self.projection(features.described.detach())

    def knowledge(
        self, features: ImageFeatures, words: str | Sequence[str] | None = None, memory: ImageMemory | None = None
    ) -> Tensor | None:
        """Vision-language knowledge of B images, once per image and phrase; None where the model has no VLSA.

        Source: paper, Eq. 1. The language model is causal: without words, its text before the image is constant and this
        depends on the image alone.

        Args:
            words: what to segment: one text for all images, one for each, or one for each object of each image in turn;
                None is the paper's constant instruction.
            memory: what `remember` returned for these features; a new phrase then costs its own tokens only.
        """
        if self.vlsa is None:
            if words is not None:
                raise InputError(
                    f"Model {self.config.name} has no VLSA and cannot follow words; load 'tiny' or leave them out."
                )
            return None
        h_hid = self.states(features, words, memory)  # H_hid = f_llm(concat(M_proj x pix(H_v, 0.5), H_t))
        return self.vlsa(h_hid)  # alpha x VLSA(H_hid) + beta, see vlsa.py

    def states(self, features: ImageFeatures, words=None, memory: ImageMemory | None = None) -> LanguageStates:
        """H_hid, what VLSA gets: the language model's states, centred where the model does so; arguments as `knowledge`."""
        texts = check_words(words, len(features.embedding))
        found = self.llm.read(self.image_tokens(features), texts, self.vlsa.reads, self.vlsa.layers, memory)
        return self.centre(found)

    def remember(self, features: ImageFeatures) -> ImageMemory | None:
        """Reads B images once, for `knowledge` with many phrases after them; None where a variant has them read again."""
        if self.vlsa is None or self.vlsa.reads == "before":
            return None
        return self.llm.remember(self.image_tokens(features), self.vlsa.layers)

    def segment(self, features: ImageFeatures, prompts: Prompts, knowledge: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mask logits (B, I, 4, 4h, 4w) and estimated IoU (B, I, 4) of I prompted objects in each of B images.

        Without knowledge, or with a mask prompt (whose embedding takes the dense prompt's place), this is SAM.
        Entry 0 of the third axis is the single mask, 1..3 are SAM's candidates for an ambiguous click.
        """
        sparse, dense = self.sam.embed(prompts, features)
        known = None if knowledge is None or prompts.masks is not None else per_instance(knowledge, len(sparse))
        sparse, dense = inject_knowledge(self.vlsa, known, sparse, dense)
        logits, iou = self.sam.decode(features, sparse, dense, prompts)
        count = len(sparse) // len(features.embedding)
        return logits.unflatten(0, (-1, count)), iou.unflatten(0, (-1, count))  # (B*I, ...) -> (B, I, ...)

    def encode(self, pixels: Tensor, origin: tuple[int, int] = (0, 0)) -> ImageFeatures:
        """Normalised pixels (B, 3, s, s) -> features; `origin` places a window on the canvas, see `sam.encode_image`."""
        return self.sam.encode(pixels, origin)

    def preprocess(self, images: list[np.ndarray], side: int | None = None) -> tuple[Tensor, list[Square]]:
        """Images of any size and type -> normalised pixels (B, 3, S, S) and the geometry that leads back; `side` in place
        of the model's S."""
        c = self.config.sam
        pairs = [to_square(to_rgb8(image), side or c.image_size, c.placement) for image in images]
        pixels = torch.from_numpy(np.stack([square for square, _ in pairs])).to(self.device)  # (B, S, S, 3)
        valid = torch.from_numpy(np.stack([geometry.valid_mask() for _, geometry in pairs])).to(self.device)
        return normalise(pixels, c.preprocessing, valid), [geometry for _, geometry in pairs]

    @torch.no_grad()
    def describe(self, image: np.ndarray | list[np.ndarray], question: str | None = None, max_new_tokens: int = 96):
        """Words about one image (a string) or several (a list); a question is asked after the image.

        Args:
            image: an array (H, W[, C]) of any usual type, or a list of such arrays.
            question: None asks for the description that the model was trained to give.
            max_new_tokens: upper limit of the answer's length.
        """
        images = image if isinstance(image, list) else [image]
        features = self.encode(self.preprocess(images)[0])
        answers = self.llm_or_raise().generate(self.image_tokens(features), question, max_new_tokens)
        return answers if isinstance(image, list) else answers[0]

    # ---------------------------------------------------------------- building, saving, loading

    @classmethod
    def from_config(cls, config: ModelConfig, seed: int = 0, pretrained_llm: bool = True, half_llm: bool = False) -> ULLSAM:
        """A model with random SAM, projection and VLSA weights (by `seed`) around the language model of the config, which
        is loaded by `load_llm` with the last two arguments."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            llm = load_llm(config.llm, pretrained_llm, half_llm) if config.llm else None
            return cls(config, build_sam(config.sam), llm).eval()

    @classmethod
    def from_preset(cls, name: str, seed: int = 0, **changes) -> ULLSAM:
        """`from_config` for the preset "debug", "tiny" or "paper", with top-level settings replaced by `changes`."""
        return cls.from_config(preset(name, **changes), seed)

    @classmethod
    def frame(cls, config: ModelConfig, language: LanguageModel | None, seed: int = 0) -> ULLSAM:
        """The model with a SAM that has no memory yet; projection and VLSA are random by `seed`."""
        with torch.device("meta"):
            sam = build_sam(config.sam)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, sam, language)

    def fill(
        self, state: dict[str, Tensor], source, dtype: torch.dtype = torch.float32, device="cpu", ignore: tuple = ()
    ) -> ULLSAM:
        """Hands weights over without a second copy: the language model's own as `dtype`, all others as float32.

        Args:
            state: names and tensors; source: what an error calls them; ignore: starts of names that may be absent.

        Raises:
            InputError: names that are missing or left over, or shapes that do not fit.
        """
        own = {k for k in state if k.startswith("llm.") and "lora_" not in k}
        ready = cast(((k, x) for k, x in state.items() if k in own), dtype, device)
        ready |= cast(((k, x) for k, x in state.items() if k not in own), torch.float32, device)
        assign(self, ready, source, ignore)
        if self.llm is not None and self.llm.lm.config.tie_word_embeddings:
            self.llm.lm.tie_weights()
        return self.to(device).eval()

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | None = None, state: dict[str, Tensor] | None = None, **_
    ) -> None:
        """Writes config.json and model.safetensors; each file is complete or absent.

        Args:
            folder: made if absent.
            dtype: of the stored floats, for example torch.float16; None keeps them.
            state: what `own_state` would be, where the model itself has only a part of each weight.
        """
        folder = Path(folder)
        write_safetensors(folder, cast((state or self.own_state()).items(), dtype, "cpu"))
        if self.llm is not None and not self.config.llm.lora_rank and not is_built_in(self.config.llm.name):
            self.llm.save(folder / "llm")  # its weights are in the file above
        write_json(folder / "config.json", self.config.to_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32, device="cpu", **_) -> ULLSAM:
        """A model saved by `save_pretrained`, computing in float32; keys that are missing or left over are errors.

        Args:
            folder: where it is, or its name on the Hugging Face hub.
            dtype: of a language model that neither comes with the package nor has adapters.
            device: where the weights go.

        Raises:
            InputError: the folder or a file is not there, damaged, or of another model.
        """
        on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)) and not Path(folder).exists()
        folder = local_folder(folder) if on_hub else Path(folder)
        config = read_config(folder)
        model = cls.frame(config, _open_language(folder, config, dtype))
        borrowed = tuple(k for k in model.state_dict() if model._is_borrowed(k))
        state = read_safetensors(folder)
        if broken := [name for name, x in state.items() if x.is_floating_point() and not x.isfinite().all()]:
            raise InputError(f"{folder} has weights that are not finite ({broken[0]}); train or download the model again.")
        model.fill(state, folder, dtype, device, borrowed)
        if model.llm is not None and is_built_in(config.llm.name):
            model.llm.merge_lora()
        return model

    def own_state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: everything but language-model weights that come from elsewhere unchanged."""
        return {k: v for k, v in self.state_dict().items() if not self._is_borrowed(k)}

    def _is_borrowed(self, key: str) -> bool:
        if not key.startswith("llm."):
            return False
        if self.config.llm.lora_rank:
            return "lora_" not in key
        return key == "llm.lm.lm_head.weight" and self.llm.lm.config.tie_word_embeddings

    # ---------------------------------------------------------------- what others need to know

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def layers(self) -> list[nn.Module]:
        """The large layers, which compute one after the other: the encoder's blocks, then the language model's."""
        return [*self.sam.image_encoder.blocks, *([] if self.llm is None else self.llm.lm.model.layers)]

    def llm_or_raise(self) -> LanguageModel:
        """The language model, or one sentence that says that this model has none."""
        if self.llm is None:
            raise InputError(f"Model {self.config.name} has no language model; load one that has, for example 'tiny'.")
        return self.llm


def check_words(words: str | Sequence[str] | None, count: int) -> list[str] | None:
    """One text per image, or as many for each, without spaces around it or an article, or None.

    Raises:
        InputError: empty or very long words, something else than text, or another number of texts.
    """
    if words is None:
        return None
    texts = [words] * count if isinstance(words, str) else list(words) if isinstance(words, (list, tuple)) else [None]
    if not texts or len(texts) % count or not all(isinstance(text, str) for text in texts):
        raise InputError(f"words must be one text, or one for each of {count} images, such as 'nuclei'; not {words!r:.80}.")
    texts = [re.sub(r"^(the|an?|all)( |$)", "", " ".join(text.split()), flags=re.IGNORECASE) for text in texts]
    if not all(texts):
        raise InputError("words is empty; say what to segment, such as 'nuclei', or leave words out.")
    if (longest := max(map(len, texts))) > MOST_LETTERS:
        raise InputError(f"words has {longest} letters; name the object in at most {MOST_LETTERS}, such as 'nuclei'.")
    return texts


def _open_language(folder: Path, config: ModelConfig, dtype: torch.dtype) -> LanguageModel | None:
    """The language model of a saved model: from its folder, or, where only its adapters are there, from its source."""
    llm = config.llm
    if llm is None:
        return None
    if (folder / "llm").is_dir():
        return open_saved(folder / "llm", llm)
    return load_llm(llm, half=is_built_in(llm.name) and llm.lora_rank > 0, dtype=dtype)


def read_config(folder: Path) -> ModelConfig:
    """The settings of a saved model.

    Raises:
        InputError: there is no config.json, or it is damaged or of another kind of model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"There is no model in {folder} (no config.json); pass a folder made by save_pretrained, or tiny or usam-tiny."
        )
    text = read_text(path)
    try:
        return ModelConfig.from_dict(json.loads(text))
    except InputError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not a model's config.json ({error}); save the model again.") from error
