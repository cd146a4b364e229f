"""uLLSAM itself: SAM, the projection, the language model and VLSA put together; saving and loading."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ullsam import sam as sam_parts
from ullsam.config import ModelConfig, preset
from ullsam.data.io import Square, to_rgb8, to_square
from ullsam.errors import InputError
from ullsam.llm import BUILT_IN, LanguageModel, load_llm
from ullsam.sam import ImageFeatures, Prompts, build_sam
from ullsam.tiny.modules import per_instance, read_clicks
from ullsam.vlsa import VisionProjection, VlsaShape, build_vlsa

SHIPPED = {"tiny": "ullsam-tiny", "usam-tiny": "usam-tiny"}  # names of the weights in data/weights

NEW_PARTS = (".summary.", ".offset_", ".anchor.")  # of SAM: they start at zero, so weights from before they existed serve


class ULLSAM(nn.Module):
    """SAM guided by a language model; with `llm=None` or the variant "none" it is a plain SAM (the uSAM baseline).

    Letters: B images, I objects per image, P points, N image tokens, D LLM width, C SAM width, h w feature grid.
    Source: paper, section 3.2 and Fig. 2.
    """

    def __init__(self, config: ModelConfig, sam: nn.Module, llm: LanguageModel | None = None):
        super().__init__()
        self.config, self.sam, self.llm = config, sam, llm
        c = config.sam
        self.projection = self.vlsa = None
        if llm is not None:
            self.projection = VisionProjection(c.out_chans, llm.dim, config.shuffle_ratio)
        if llm is not None and config.vlsa != "none":
            shape = VlsaShape(llm.dim, c.out_chans, (c.grid, c.grid), config.shuffle_ratio)
            self.vlsa = build_vlsa(config.vlsa, shape, **config.vlsa_options)

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

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def preprocess(self, images: list[np.ndarray], side: int | None = None) -> tuple[Tensor, list[Square]]:
        """Images of any size and type -> normalised pixels (B, 3, S, S) and the geometry that leads back; `side` in place
        of the model's S."""
        c = self.config.sam
        pairs = [to_square(to_rgb8(image), side or c.image_size, c.placement) for image in images]
        pixels = torch.from_numpy(np.stack([square for square, _ in pairs])).to(self.device)  # (B, S, S, 3)
        valid_mask = torch.from_numpy(np.stack([geometry.valid_mask() for _, geometry in pairs])).to(self.device)
        return sam_parts.normalise(pixels, c.preprocessing, valid_mask), [geometry for _, geometry in pairs]

    def encode(self, pixels: Tensor, origin: tuple[int, int] = (0, 0)) -> ImageFeatures:
        """Normalised pixels (B, 3, s, s) -> features; `origin` places a window on the canvas, see `sam.encode_image`."""
        return sam_parts.encode_image(self.sam.image_encoder, pixels, origin)

    def image_tokens(self, features: ImageFeatures) -> Tensor:
        """Features -> image tokens (B, N, D) for the language model. No gradient flows back into the encoder."""
        self.llm_or_raise()
        return self.projection(features.described.detach())

    def knowledge(self, features: ImageFeatures) -> Tensor | None:
        """Vision-language knowledge of B images, once per image; None where the model has no VLSA.

        Source: paper, Eq. 1 and 2. The text before the image is constant and the model causal, so this depends on the
        image alone.
        """
        return None if self.vlsa is None else self.vlsa(self.llm.hidden(self.image_tokens(features)))

    def knowledge_and_caption_loss(self, features: ImageFeatures, captions: list[str]) -> tuple[Tensor, Tensor]:
        """`knowledge` and the loss of the images' captions in one pass of the language model."""
        hidden, loss = self.llm_or_raise().hidden_and_loss(self.image_tokens(features), captions)
        return self.vlsa(hidden), loss

    def segment(
        self, features: ImageFeatures, prompts: Prompts, knowledge: Tensor | None = None, origin: tuple[int, int] = (0, 0)
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (B, I, 4, 4h, 4w) and estimated IoU (B, I, 4) of I prompted objects in each of B images.

        Without knowledge, or with a mask prompt (whose embedding takes the dense prompt's place), this is SAM.
        Entry 0 of the third axis is the single mask, 1..3 are SAM's candidates for an ambiguous click.
        """
        (left, top), (h, w) = origin, features.embedding.shape[2:]
        clicks = read_clicks(prompts, features.skips) if features.skips else None
        prompts = _shifted(prompts, left * self.config.sam.patch_size, top * self.config.sam.patch_size)
        sparse, dense = sam_parts.encode_prompts(self.sam.prompt_encoder, prompts)
        dense = dense[:, :, :h, :w]  # a window needs only its part of the constant no-mask embedding
        image_pe = self.sam.prompt_encoder.get_dense_pe()[:, :, top : top + h, left : left + w]
        if knowledge is not None and prompts.masks is None:
            sparse, dense = self.vlsa.inject(per_instance(knowledge, len(sparse)), sparse, dense)
        logits, iou = sam_parts.decode_masks(self.sam.mask_decoder, features, image_pe, sparse, dense, clicks)
        count = len(sparse) // len(features.embedding)
        return logits.unflatten(0, (-1, count)), iou.unflatten(0, (-1, count))  # (B*I, ...) -> (B, I, ...)

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

    def llm_or_raise(self) -> LanguageModel:
        """The language model, or one sentence that says that this model has none."""
        if self.llm is None:
            raise InputError(f"Model {self.config.name} has no language model; load one that has, for example 'tiny'.")
        return self.llm

    def own_state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: everything but language-model weights that come from elsewhere unchanged."""
        return {k: v for k, v in self.state_dict().items() if not self._is_borrowed(k)}

    def _is_borrowed(self, key: str) -> bool:
        if not key.startswith("llm."):
            return False
        if self.config.llm.lora_rank:
            return "lora_" not in key
        return key == "llm.lm.lm_head.weight" and self.llm.lm.config.tie_word_embeddings

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | None = None, state: dict[str, Tensor] | None = None
    ) -> None:
        """Writes config.json and model.safetensors; each file is complete or absent.

        Args:
            folder: made if absent.
            dtype: of the stored floats, for example torch.float16; None keeps them.
            state: what `own_state` would be, where the model itself has only a part of each weight.
        """
        from ullsam.checkpoints import save_language
        from ullsam.files import cast, whole, write_safetensors

        folder = Path(folder)
        write_safetensors(folder, cast((state or self.own_state()).items(), dtype, "cpu"))
        if self.llm is not None and not self.config.llm.lora_rank and self.config.llm.name not in BUILT_IN:
            save_language(self.llm, folder / "llm")  # its weights are in the file above
        with whole(folder / "config.json") as part:
            part.write_text(json.dumps(self.config.to_dict(), indent=1, ensure_ascii=False))

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> ULLSAM:
        """A model saved by `save_pretrained`, computing in float32; keys that are missing or left over are errors.

        Args:
            dtype: of a language model that is neither "debug" nor "smollm2".

        Raises:
            InputError: the folder or a file is not there, damaged, or of another model.
        """
        from ullsam.checkpoints import load_saved, load_with_adapters
        from ullsam.files import copy_into, read_safetensors

        folder = Path(folder)
        config = _read_config(folder)
        if (folder / "llm").is_dir():
            return load_saved(folder, config, dtype)
        if config.llm is not None and config.llm.lora_rank and config.llm.name not in BUILT_IN:
            return load_with_adapters(folder, config, dtype)
        borrows = config.llm is not None and config.llm.lora_rank > 0  # the folder has its adapters only
        model = cls.from_config(config, half_llm=borrows)
        state = read_safetensors(folder)
        borrowed = tuple(k for k in model.state_dict() if model._is_borrowed(k))
        copy_into(model, state, folder, ignore=borrowed)
        if model.llm is not None:
            model.llm.merge_lora()
        return model


def load_parts(model: ULLSAM, folder: str | Path, fresh: tuple[str, ...] = ()) -> None:
    """Starts `model` from another model's weights: all that it shares with the saved one, SAM's parts always (but what
    adds nothing at first may be new: the encoder's summary, and what the decoder reads off the clicks).

    Args:
        fresh: starts of names whose weights stay as they are in `model`.

    Raises:
        InputError: the saved model lacks a part of SAM, or has a part of another shape or that `model` lacks.
    """
    from ullsam.files import copy_into, read_safetensors

    state = {k: v for k, v in read_safetensors(folder).items() if not k.startswith(fresh)}
    new = (k for k in model.state_dict() if k not in state)
    copy_into(model, state, folder, ignore=tuple(k for k in new if _may_be_new(k) or k.startswith(fresh)))


def _may_be_new(key: str) -> bool:
    return not key.startswith("sam.") or any(part in key for part in NEW_PARTS)


def _shifted(prompts: Prompts, dx: int, dy: int) -> Prompts:
    """Prompts of a window in the coordinates of the whole canvas."""
    if not dx and not dy:
        return prompts
    points, boxes = prompts.points, prompts.boxes
    points = None if points is None else points + points.new_tensor([dx, dy])
    boxes = None if boxes is None else boxes + boxes.new_tensor([dx, dy, dx, dy])
    return prompts._replace(points=points, boxes=boxes)


def _read_config(folder: Path) -> ModelConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"There is no model in {folder} (no config.json); pass a folder made by save_pretrained, or "
            f"one of {', '.join(SHIPPED)}."
        )
    try:
        return ModelConfig.from_dict(json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a model's config.json ({error}); save the model again.") from error


def shipped(name: str) -> Path:
    """Where a file or folder that comes with ullsam is: "weights/ullsam-tiny" or "results/tiny_test.json".

    In the repository that is the folder data, in an installed package the package itself.
    """
    package = Path(__file__).parent
    places = [package.parent / "data" / name, package / name]
    return next((p for p in places if p.exists()), places[0])


def load(
    name: str | Path, sam=None, llm=None, ullsam=None, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> ULLSAM:
    """The shipped weights "tiny" (uLLSAM) or "usam-tiny" (the baseline without language model), a saved folder, or "paper".

    Args:
        name: "paper" is put together from real checkpoints.
        sam, llm, ullsam: where "paper" takes its parts from, see `ullsam.checkpoints.load_paper`.
        dtype: of the language model of "paper" or of a folder that was made from it; all else is float32.
        device: where the weights go.
    """
    if str(name) == "paper":
        from ullsam.checkpoints import load_paper

        return load_paper(sam, llm, ullsam, dtype, device)
    if sam or llm or ullsam:
        raise InputError(f"sam=, llm= and ullsam= are the parts of 'paper'; leave them out to load {name}.")
    folder = shipped(f"weights/{SHIPPED[str(name)]}") if str(name) in SHIPPED else name
    return ULLSAM.from_pretrained(folder, dtype).to(device)
