"""Vision-Language Semantic Alignment: from image features to LLM tokens and from LLM states back to SAM's prompts.

Letters: B images, I objects of one image, P prompt tokens, N image tokens, D LLM width, C SAM width, h w feature grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ullsam.errors import InputError


def pixel_shuffle(x: Tensor, ratio: float = 0.5) -> Tensor:
    """Trades resolution for channels: (B, h, w, C) -> (B, h*ratio, w*ratio, C/ratio^2), nothing lost.

    The channels of a k x k block (k = 1/ratio) are laid side by side in the order (dy, dx, C).
    Source: paper, section 3.2.1, the function pix.

    Raises:
        InputError: the grid does not divide by 1/ratio.
    """
    k = round(1 / ratio)
    b, h, w, c = x.shape
    if h % k or w % k:
        raise InputError(f"A {h} x {w} grid cannot be shuffled by {ratio}; both sides must divide by {k}.")
    x = x.view(b, h // k, k, w // k, k, c).transpose(2, 3)  # (B, h/k, w/k, dy, dx, C)
    return x.reshape(b, h // k, w // k, k * k * c)


def pixel_unshuffle(x: Tensor, ratio: float = 0.5) -> Tensor:
    """The exact inverse of `pixel_shuffle`: (B, h, w, C) -> (B, h/ratio, w/ratio, C*ratio^2)."""
    k = round(1 / ratio)
    b, h, w, c = x.shape
    x = x.view(b, h, w, k, k, c // (k * k)).transpose(2, 3)  # (B, h, dy, w, dx, C/k^2)
    return x.reshape(b, h * k, w * k, c // (k * k))


def norm_mlp(inputs: int, hidden: int, outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """LayerNorm - Linear - GELU - Linear, the shape of both the projection and VLSA's MLP."""
    layers = [nn.LayerNorm(inputs), nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs)]
    return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []))


class VisionProjection(nn.Module):
    """M_proj x pix(H_v, 0.5): features (B, C, h, w) -> image tokens (B, N, D) of the LLM, N = h*w*ratio^2.

    Source: paper, section 3.2.1.
    """

    def __init__(self, sam_dim: int, llm_dim: int, ratio: float = 0.5):
        super().__init__()
        self.ratio = ratio
        self.mlp = norm_mlp(round(sam_dim / ratio**2), llm_dim, llm_dim)

    def forward(self, features: Tensor) -> Tensor:
        x = pixel_shuffle(features.permute(0, 2, 3, 1), self.ratio)  # (B, C, h, w) -> (B, h/2, w/2, 4C)
        return self.mlp(x.flatten(1, 2))  # (B, N, 4C) -> (B, N, D)


@dataclass(frozen=True)
class VlsaShape:
    """What a variant needs to know of the models it joins."""

    llm_dim: int  # D
    sam_dim: int  # C
    grid: tuple[int, int]  # (h, w) of a whole image; training windows have fewer
    ratio: float  # of the pixel shuffle


class VLSA(nn.Module):
    """Base class of all variants: `forward` once per image, `inject` once per set of prompts."""

    def __init__(self, shape: VlsaShape):
        super().__init__()
        self.shape = shape

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (B, N, D): LLM states at the image tokens -> knowledge (B, ...), computed once per image."""
        raise NotImplementedError("A VLSA variant defines forward(hidden) -> knowledge.")

    def inject(self, knowledge: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Puts knowledge into SAM's prompts.

        Args:
            knowledge: what `forward` returned, its first axis repeated to I.
            sparse: (I, P, C) prompt tokens of points and boxes; dense: (I, C, h, w), SAM's no-mask embedding.

        Returns:
            sparse (I, any, C) and dense (I, C, h, w); here the dense prompt is replaced by the knowledge.
        """
        return sparse, knowledge


def inject_knowledge(vlsa: VLSA, knowledge: Tensor | None, sparse: Tensor, no_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The prompts that the mask decoder sees, with knowledge or without.

    Args:
        vlsa: the module; knowledge: what its `forward` made of the image, alpha x VLSA(H_hid) + beta for "paper".
        sparse: (I, P, C) prompt tokens; no_mask: (I, C, h, w), SAM's own dense prompt, the no-mask embedding.

    Source: paper, Eq. 2.
    """
    if knowledge is None:
        return sparse, no_mask  # Dense_embed = no_mask_embeddings (baseline: SAM, uSAM)
    return vlsa.inject(knowledge, sparse, no_mask)  # Dense_embed = alpha x VLSA(H_hid) + beta (uLLSAM)


_BUILT_IN: dict[str, type[VLSA]] = {}
_REGISTERED: dict[str, type[VLSA]] = {}


def register_vlsa(name: str) -> Callable[[type[VLSA]], type[VLSA]]:
    """Class decorator that makes a variant known by `name`; running it again replaces the variant.

    Raises:
        InputError: the name belongs to a built-in variant, or the class does not derive from `VLSA`.
    """

    def add(cls: type[VLSA]) -> type[VLSA]:
        if name in _BUILT_IN or name == "none":
            raise InputError(f"{name!r} is a built-in VLSA variant; give yours another name.")
        if not (isinstance(cls, type) and issubclass(cls, VLSA)):
            raise InputError(f"{getattr(cls, '__name__', cls)} must derive from ullsam.VLSA: class Mine(ullsam.VLSA).")
        _REGISTERED[name] = cls
        return cls

    return add


def vlsa_names() -> list[str]:
    """Names of all variants: "none", the built-in ones, then those that were registered."""
    return ["none", *_BUILT_IN, *_REGISTERED]


def build_vlsa(name: str, shape: VlsaShape, **options) -> VLSA:
    """A new module of the variant `name`; unknown names are an error that lists the known ones."""
    variants = _BUILT_IN | _REGISTERED
    if name not in variants:
        raise InputError(f"There is no VLSA variant {name!r}; known: {', '.join(vlsa_names())}. Did its cell run?")
    return variants[name](shape, **options)


def _built_in(name: str):
    return lambda cls: _BUILT_IN.setdefault(name, cls)


@_built_in("paper")
class PaperVLSA(VLSA):
    """The paper's module: MLP, inverse pixel shuffle, channel norm, then alpha * x + beta replaces the dense prompt.

    Source: paper, section 3.2.1 and Table 1 (`learned_scale_shift`, `dropout`); the order of steps is the official code's.
    """

    def __init__(self, shape: VlsaShape, learned_scale_shift: bool = True, dropout: float = 0.0):
        super().__init__(shape)
        width = round(shape.sam_dim / shape.ratio**2)
        self.mlp = norm_mlp(shape.llm_dim, width, width, dropout)
        self.scale = nn.Parameter(torch.full((1,), 0.1)) if learned_scale_shift else None
        self.shift = nn.Parameter(torch.zeros(1)) if learned_scale_shift else None

    def forward(self, hidden: Tensor) -> Tensor:
        x = pixel_unshuffle(to_grid(self.mlp(hidden)), self.shape.ratio)  # (B, N, 4C) -> (B, h, w, C)
        x = F.layer_norm(x, x.shape[-1:])  # over the channels of each position, without parameters
        x = x if self.scale is None else x * self.scale + self.shift
        return x.permute(0, 3, 1, 2)  # (B, C, h, w)


@_built_in("residual")
class ResidualVLSA(PaperVLSA):
    """Adds the paper's knowledge to SAM's own dense prompt behind a gate that starts closed: training begins as SAM."""

    def __init__(self, shape: VlsaShape, dropout: float = 0.0):
        super().__init__(shape, learned_scale_shift=False, dropout=dropout)
        self.gate = nn.Parameter(torch.zeros(1))

    def inject(self, knowledge: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        return sparse, dense + self.gate.tanh() * knowledge


@_built_in("tokens")
class TokenVLSA(VLSA):
    """Hands knowledge over as a few extra prompt tokens beside the points; the dense prompt stays SAM's own."""

    def __init__(self, shape: VlsaShape, count: int = 4, heads: int = 4):
        super().__init__(shape)
        self.norm = nn.LayerNorm(shape.llm_dim)
        self.states = nn.Linear(shape.llm_dim, shape.sam_dim)
        self.queries = nn.Parameter(torch.randn(count, shape.sam_dim) * 0.02)
        self.attention = nn.MultiheadAttention(shape.sam_dim, heads, batch_first=True)

    def forward(self, hidden: Tensor) -> Tensor:
        states = self.states(self.norm(hidden))  # (B, N, D) -> (B, N, C)
        queries = self.queries.expand(len(hidden), -1, -1)  # (B, count, C)
        return self.attention(queries, states, states, need_weights=False)[0]

    def inject(self, knowledge: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([sparse, knowledge], dim=1), dense  # (I, P + count, C)


def to_grid(tokens: Tensor) -> Tensor:
    """Image tokens (B, N, X) back on their square grid (B, sqrt(N), sqrt(N), X)."""
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise InputError(f"{tokens.shape[1]} image tokens do not form a square grid; pass all tokens of one image.")
    return tokens.unflatten(1, (side, side))
