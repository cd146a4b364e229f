"""Models of the paper's size, or of a small one for tests, with random weights; and a faithful account of FLOPs."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ullsam import ULLSAM, LlmConfig, ModelConfig, SamConfig, build_sam
from ullsam.checkpoints.internlm2 import empty_lm
from ullsam.config import DEBUG
from ullsam.llm import LanguageModel

aten = torch.ops.aten


@dataclass(frozen=True)
class Size:
    """What is measured: SAM, the language model, and how the official code pads."""

    sam: SamConfig
    llm: dict  # fields of transformers' LlamaConfig
    before: int  # tokens in front of the image, as the official template has them
    padded: int  # tokens of the official sequence
    gemm: int  # side of the square matrices whose product is the machine's rate


INTERNLM2 = dict(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=24,
    num_attention_heads=16,
    num_key_value_heads=8,
    vocab_size=92553,
    rms_norm_eps=1e-5,
    max_position_embeddings=32768,
)
SMALL = INTERNLM2 | dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=200
)
SIZES = {
    "paper": Size(SamConfig(), INTERNLM2, before=56, padded=1280, gemm=4096),
    "small": Size(replace(DEBUG.sam, image_size=128, window_size=3), SMALL, before=5, padded=40, gemm=64),
}


class Letters:
    """A tokenizer with one token per letter; speed does not depend on which tokens they are."""

    def __call__(self, text, add_special_tokens=False):
        return SimpleNamespace(input_ids=[ord(letter) % 90 for letter in text])


@torch.no_grad()
def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of a plausible scale, the same for the same names; a block of numbers is repeated, which is fast."""
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(seed))
    for name, parameter in sorted(module.named_parameters()):
        flat = parameter.view(-1)
        if parameter.ndim < 2:
            flat.fill_(0.0 if "bias" in name else 1.0)
            continue
        scale = 0.2 if "rel_pos" in name else min(0.5, parameter[0].numel() ** -0.5)
        for start in range(0, flat.numel(), block.numel()):
            piece = flat[start : start + block.numel()]
            piece.copy_(block[: piece.numel()] * scale)
    return module


def language_model(size: Size, attention: str = "sdpa") -> nn.Module:
    """`LlamaForCausalLM` in bfloat16, built on the meta device."""
    from transformers import LlamaConfig

    lm = empty_lm(LlamaConfig(**size.llm, rope_theta=1e6, tie_word_embeddings=False, attn_implementation=attention))
    rotary = lm.model.rotary_emb
    lm = lm.to(torch.bfloat16).to_empty(device="cpu")
    lm.model.rotary_emb = type(rotary)(lm.config)  # to_empty forgot its frequencies
    return fill(lm).eval().requires_grad_(False)


def our_model(size: Size):
    """A whole uLLSAM of ours, language model in bfloat16, all else in float32."""
    config = LlmConfig(name="random", before_image="x" * size.before)
    language = LanguageModel(language_model(size), Letters(), config)
    model = ULLSAM.frame(ModelConfig(sam=size.sam, llm=config), language, seed=0)
    model.sam = fill(build_sam(size.sam))
    return model.eval()


def our_encoder(size: Size) -> nn.Module:
    """Our image encoder."""
    return fill(build_sam(size.sam).image_encoder).eval()


def their_encoder(size: Size) -> nn.Module:
    """segment_anything's image encoder with all of its own code, and the same weights."""
    c = size.sam
    encoder = ImageEncoderViT(
        img_size=c.image_size,
        embed_dim=c.embed_dim,
        depth=c.depth,
        num_heads=c.num_heads,
        out_chans=c.out_chans,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=c.window_size,
        global_attn_indexes=c.global_attn_indexes,
    )
    return fill(encoder).eval()


def picture(size: Size) -> np.ndarray:
    """A random image (S, S, 3) uint8."""
    side = size.sam.image_size
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def training_batch(size: Size) -> dict:
    """One image with four objects, each with one point inside and three outside, as in the paper's stage 3."""
    from ullsam import Prompts

    side = size.sam.image_size
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.from_numpy(picture(size))[None],
        "valid_mask": torch.ones(1, side, side, dtype=torch.bool),
        "origin": (0, 0),
        "truth": torch.rand(1, 4, side, side, generator=generator) > 0.5,
        "valid": torch.ones(1, 4),
        "prompts": Prompts(torch.rand(1, 4, 4, 2, generator=generator) * side, torch.tensor([1.0, 0, 0, 0]).expand(1, 4, 4)),
    }


def _attention(q, k, v, *args, out_shape=None, **kwargs) -> int:
    (b, heads, n, d), m = q, k[2]
    return 2 * b * heads * n * m * (d + v[3])


def _attention_backward(grad, q, k, v, *args, out_shape=None, **kwargs) -> int:
    return 5 * _attention(q, k, v) // 2  # five products of that size instead of two


def _added_product(total, a, b, *args, out_shape=None, **kwargs) -> int:
    return 2 * a[0] * a[1] * a[2] * b[2]  # (B, n, k) times (B, k, m)


@contextmanager
def counting(counts: dict):
    """Adds what runs inside to counts["flops"]: matrix products and convolutions, two for a multiplication and addition."""
    formulas = {
        aten.baddbmm_: _added_product,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        yield
    counts["flops"] = counts.get("flops", 0) + counter.get_total_flops()
