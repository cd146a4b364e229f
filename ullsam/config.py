"""Settings of a model and of a training run: frozen dataclasses, one comment per field, and the presets."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields, replace

from ullsam.errors import InputError


@dataclass(frozen=True)
class SamConfig:
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

    @property
    def grid(self) -> int:
        """Side of the feature grid, in patches."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class LlmConfig:
    """Which language model, and how it is adapted."""

    name: str = "internlm/internlm2_5-1_8b-chat"  # "debug", "smollm2", or a Hugging Face name or folder
    lora_rank: int = 0  # 0: the LLM's own weights are trained in stage 2; > 0: LoRA adapters of this rank
    lora_alpha: int = 32  # LoRA scale is lora_alpha / lora_rank
    # the chat template; all text before the image is constant, so that knowledge depends on the image alone
    before_image: str = "<|im_start|>user\nDescribe the image in detail\n<img>"  # up to the image tokens
    after_image: str = "</img>"  # right after the image tokens; a question follows on a new line
    answer: str = "<|im_end|>\n<|im_start|>assistant\n"  # between the user's turn and the answer
    end: str = "<|im_end|>"  # closes the answer


@dataclass(frozen=True)
class ModelConfig:
    """A whole uLLSAM: SAM, the language model, and the module that joins them."""

    name: str = "paper"  # name shown in tables
    sam: SamConfig = SamConfig()  # the segmentation half
    llm: LlmConfig | None = LlmConfig()  # the language half; None for a plain SAM
    vlsa: str = "paper"  # registered VLSA variant; "none" leaves SAM as it is
    vlsa_options: dict = field(default_factory=dict)  # keyword arguments of the variant
    shuffle_ratio: float = 0.5  # pixel shuffle: each side of the grid shrinks by this factor

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
class TrainConfig:
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

    def lr_scale(self, name: str) -> float:
        """Factor on the learning rate of the parameter `name`."""
        return 1.0

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
