"""Settings of a model and of a training run: frozen dataclasses, one comment per field, and the presets."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields, replace
from types import UnionType
from typing import get_args, get_origin, get_type_hints

from ullsam.errors import InputError

LARGEST = 2**31 - 1
LIMITS = {  # the least and the largest value of a setting; any other number lies between 0 and LARGEST
    **dict.fromkeys(("steps", "batch_size", "accumulate", "instances", "save_every", "log_every"), (1, LARGEST)),
    **dict.fromkeys(("image_size", "patch_size", "embed_dim", "num_heads", "decoder_mlp_dim"), (1, 2**14)),
    **dict.fromkeys(("final_lr", "box_fraction", "global_negative_fraction", "word_fraction"), (0, 1)),
    **{"depth": (1, 1000), "out_chans": (16, 1024), "mask_in_chans": (4, 1024), "iou_head_dim": (0, 2**14)},
    **{"stem": (1, 4096), "position_scale": (0.001, 1000), "scales": (0.01, 1)},
    **{"lora_rank": (0, 4096), "clip": (1e-6, 1e6)},
}
CHOICES = {
    **{"precision": ("no", "bf16"), "recompute": ("no", "cheap", "all")},
    **{"preprocessing": ("sam", "official"), "placement": ("corner", "center")},
    "shuffle_ratio": (1, 0.5, 0.25),
}


class Checked:
    """Settings that refuse a value of another type than its field's, or outside of LIMITS and CHOICES."""

    def __post_init__(self):
        for name, kind in get_type_hints(type(self)).items():
            value, limits = getattr(self, name), LIMITS.get(name, (0, LARGEST))
            if not (value in CHOICES[name] if name in CHOICES else _fits(value, kind, *limits)):
                what = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(kind, kind)
                numbers = " from {} to {}".format(*limits) if kind in (int, float) or get_origin(kind) is tuple else ""
                wanted = " or ".join(map(str, CHOICES.get(name, (f"{what}{numbers}",))))
                raise InputError(f"{name} is {value!r}; give {wanted}.")

    def _divides(self, **parts: int) -> None:
        for name, part in parts.items():
            if getattr(self, name) % part:
                raise InputError(f"{name} is {getattr(self, name)}; give a multiple of {part}.")


def _fits(value, kind, low: float, high: float) -> bool:
    kinds = get_args(kind)
    if get_origin(kind) is tuple:
        long = len(value) if isinstance(value, tuple) else 0
        kinds = kinds[:1] * long if Ellipsis in kinds else kinds
        return 0 < long == len(kinds) and all(_fits(*pair, low, high) for pair in zip(value, kinds, strict=True))
    if kind in (int, float):
        numeric = isinstance(value, (int, kind)) and not isinstance(value, bool)
        return numeric and low <= value <= high  # false for NaN
    if kind is str:
        return isinstance(value, str) and value == value.encode(errors="ignore").decode()  # no half characters
    return isinstance(value, kind) if isinstance(kind, (type, UnionType)) else True


@dataclass(frozen=True)
class SamConfig(Checked):
    """Sizes of the SAM part; the defaults are SAM ViT-B/16 (Kirillov et al. 2023)."""

    image_size: int = 1024  # S: side of the square image that the encoder sees, pixels
    patch_size: int = 16  # side of one patch; the feature grid is S / patch_size
    embed_dim: int = 768  # width of the vision transformer
    depth: int = 12  # number of transformer blocks
    num_heads: int = 12  # attention heads per block
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)  # blocks that see the whole grid
    window_size: int = 14  # side of the attention windows in the other blocks, patches
    use_rel_pos: bool = True  # SAM's decomposed relative position in the attention
    out_chans: int = 256  # C: channels of features, prompts and decoder
    decoder_mlp_dim: int = 2048  # hidden width of the mask decoder's MLPs
    mask_in_chans: int = 16  # channels of the mask-prompt encoder
    iou_head_dim: int = 0  # hidden width of the mask-quality head; 0: out_chans
    preprocessing: str = "sam"  # "sam": pixel mean/std; "official": 0..1, as the official uLLSAM code
    placement: str = "corner"  # where zero padding goes: "corner" (SAM, uSAM) or "center" (official uLLSAM)

    def __post_init__(self):
        super().__post_init__()
        self._divides(image_size=self.patch_size, embed_dim=self.num_heads, out_chans=16, mask_in_chans=4)

    @property
    def grid(self) -> int:
        """Side of the feature grid, in patches."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class LlmConfig(Checked):
    """Which language model, and how it is adapted."""

    name: str = "internlm/internlm2_5-1_8b-chat"  # "debug", "smollm2", or a Hugging Face name or folder
    lora_rank: int = 0  # 0: the LLM's own weights are trained in stage 2; > 0: LoRA adapters of this rank
    lora_alpha: int = 32  # LoRA scale is lora_alpha / lora_rank
    # the chat template; all text before the image is constant, so that knowledge depends on the image alone
    before_image: str = "<|im_start|>user\nDescribe the image in detail\n<img>"  # up to the image tokens
    instruction: str = "Describe the image in detail"  # the part of before_image whose place words take
    request: str = "Segment the"  # stands before words, in place of the instruction or on a line after the image
    after_image: str = "</img>"  # right after the image tokens; a question follows on a new line
    answer: str = "<|im_end|>\n<|im_start|>assistant\n"  # between the user's turn and the answer
    end: str = "<|im_end|>"  # closes the answer


@dataclass(frozen=True)
class ModelConfig(Checked):
    """A whole uLLSAM: SAM, the language model, and the module that joins them."""

    name: str = "paper"  # name shown in tables
    sam: SamConfig = SamConfig()  # the segmentation half
    llm: LlmConfig | None = LlmConfig()  # the language half; None for a plain SAM
    vlsa: str = "paper"  # registered VLSA variant; "none" leaves SAM as it is
    vlsa_options: dict = field(default_factory=dict)  # keyword arguments of the variant
    shuffle_ratio: float = 0.5  # pixel shuffle: each side of the grid shrinks by this factor
    token_length: float = 0.0  # balances image tokens and scales them to a word's length, see vlsa.TokenBalance; 0: neither
    trained_with_words: bool = False  # in stage 3, so that masks follow what words say; `fit` sets it
    centred_states: bool = False  # hidden states without their running mean, see vlsa.CentredStates; not so in the paper

    def to_dict(self) -> dict:
        """The settings as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> ModelConfig:
        """Builds the settings back from `to_dict`; an unknown field is an error that names it."""
        values = dict(values)
        sam = {k: v for k, v in (values.get("sam") or {}).items() if k not in INERT or INERT[k] != v}
        classes = (SamConfig, *SamConfig.__subclasses__())  # a room of the package may derive one with more fields
        fitting = next((c for c in classes if set(sam) <= {f.name for f in fields(c)}), SamConfig)
        values["sam"] = _from_dict(fitting, sam)
        values["llm"] = _from_dict(LlmConfig, values["llm"]) if values.get("llm") else None
        return _from_dict(cls, values)


# Fields in files of version 0.1 that only models with more than SAM's own parts have; at these values they say nothing
INERT = {"qk_norm": False, "position_scale": 1.0, "stem": [], "summary": False, "scales": [1.0]}


def _from_dict(cls, values: dict):
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        words = f"{', '.join(unknown)}; known fields: {', '.join(sorted(known))}"
        raise InputError(f"{cls.__name__} has no field {words}. `ullsam.load` opens the models of all rooms.")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


# The official training template, with its system message (InternVL's): "You are the multimodal model InternVL ..."
INTERNVL = LlmConfig(
    before_image="<s><|im_start|>system\n你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
    "是一个有用无害的人工智能助手。<|im_end|><|im_start|>user\nDescribe the image in detail\n<img>",
    answer="<|im_end|><|im_start|>assistant\n",
)

SMALL_VIT = dict(image_size=64, embed_dim=32, depth=2, num_heads=2, global_attn_indexes=(1,), window_size=2)
DEBUG_SAM = SamConfig(**SMALL_VIT, out_chans=32, decoder_mlp_dim=64, mask_in_chans=8)
DEBUG = ModelConfig(name="debug", sam=DEBUG_SAM, llm=LlmConfig(name="debug"))
PRESETS = {"debug": DEBUG, "paper": ModelConfig(llm=INTERNVL)}  # `ullsam.tiny` adds its own


def preset(name: str, **changes) -> ModelConfig:
    """The preset "debug", "paper" or (`ullsam.tiny` adds it) "tiny", with top-level fields replaced by `changes`."""
    if name not in PRESETS:
        raise InputError(f"There is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return replace(PRESETS[name], **changes)


def fast() -> bool:
    """True where ULLSAM_FAST asks for short runs (tests, first looks); the only reader of that variable."""
    return os.environ.get("ULLSAM_FAST", "") not in ("", "0")


@dataclass(frozen=True)
class TrainConfig(Checked):
    """One training stage as the paper has it; the defaults are shared by all stages.

    A room of the package, or a student, adds settings by deriving from it, and says with them what a stage is
    (`train.stage_table`).
    """

    stage: int = 3  # 1 alignment, 2 fine-tuning on captions, 3 interactive segmentation
    steps: int = 1000  # optimiser steps
    batch_size: int = 8  # images per optimiser micro-step
    accumulate: int = 1  # micro-steps per optimiser step
    lr: float = 1e-3  # peak learning rate (AdamW)
    weight_decay: float = 0.01  # on matrices only; norms, biases, embeddings and scalars have none
    warmup: int = 50  # optimiser steps of linear warm-up
    final_lr: float = 0.02  # fraction of the peak that the cosine schedule ends at
    clip: float = 1.0  # maximum gradient norm
    seed: int = 0  # decides initial data order, crops, points and noise
    precision: str = "no"  # "no" computes in float32, "bf16" with bfloat16 autocast
    view: int = 0  # side of the training crops in pixels; 0: the model's whole image
    instances: int = 4  # at most so many objects per image
    prompts: tuple[tuple[int, int], ...] = ((1, 3),)  # (positive, negative) counts, one drawn per step
    recompute: str = "no"  # less memory: "cheap" results in transformers, or "all", see accel/checkpointing.py
    save_every: int = 200  # optimiser steps between checkpoints
    log_every: int = 10  # optimiser steps between log lines
    workers: int = 0  # data-loading processes
    word_fraction: float = 0.0  # fraction of stage 3's steps that ask by words, see data/wordviews.py; none in the paper
    vlsa_lr_scale: float = 1.0  # factor on the rate of VLSA, which starts afresh beside a decoder that has learnt

    def lr_scale(self, name: str) -> float:
        """Factor on the learning rate of the parameter `name`."""
        return self.vlsa_lr_scale if name.removeprefix("model.").startswith("vlsa.") else 1.0

    @property
    def uniform(self) -> bool:
        """Whether all batches use the same weights, which is needed where weights are divided among processes."""
        return True


# The paper's runs (section 3.3 and appendix A), in optimiser steps: epochs x images / images per step on its four GPUs
LEAN = dict(precision="bf16", recompute="cheap")
PAPER_TRAINING = {
    1: TrainConfig(stage=1, steps=40_000, batch_size=3, lr=1e-4, **LEAN),  # 6 epochs of 80,000 pairs
    2: TrainConfig(stage=2, steps=80_000, batch_size=1, lr=1e-6, **LEAN),  # 2 epochs of 40,000, on one GPU
    3: TrainConfig(stage=3, steps=30_000, batch_size=1, accumulate=8, lr=1e-3, **LEAN),  # 24 epochs of 40,000
}
