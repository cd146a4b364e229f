"""Vision-Language Semantic Alignment: from image features to LLM tokens and from LLM states back to SAM's prompts.

Letters: B images, I objects of one image, P prompt tokens, N image tokens, T words' tokens, D LLM width, C SAM width, h w
feature grid.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ullsam.errors import InputError
from ullsam.types import LanguageStates


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

    Args:
        length: to which balanced tokens are scaled, that of the language model's words; 0 (the paper): tokens as they come.

    Source: paper, section 3.2.1.
    """

    def __init__(self, sam_dim: int, llm_dim: int, ratio: float = 0.5, length: float = 0.0):
        super().__init__()
        self.ratio = ratio
        self.mlp = norm_mlp(round(sam_dim / ratio**2), llm_dim, llm_dim)
        self.balance = TokenBalance(llm_dim, length) if length else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        x = pixel_shuffle(features.permute(0, 2, 3, 1), self.ratio)  # (B, C, h, w) -> (B, h/2, w/2, 4C)
        return self.balance(self.mlp(x.flatten(1, 2)))  # (B, N, 4C) -> (B, N, D)


class RunningMean(nn.Module):
    """Takes away what all images have in common: the mean (D,) over images and positions, gathered while training.

    The first steps count alike, later ones with `rate`, so that the mean follows weights that change. It is a buffer:
    saved with the model, and 0 before any training.
    """

    def __init__(self, dim: int, rate: float = 0.01):
        super().__init__()
        self.rate = rate
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (..., D) without the mean; with `valid` (...,) padding counts in no mean and stays 0."""
        if self.training:
            self.steps.add_(1).clamp_(max=1 / self.rate)
            now = (x.flatten(0, -2) if valid is None else x[valid]).detach().float().mean(0)  # (..., D) -> (D,)
            self.mean.lerp_(now, 1 / self.steps)
        x = x - self.mean.to(x.dtype)
        return x if valid is None else x * valid[..., None]


class TokenBalance(nn.Module):
    """Image tokens without the constant that all of them contain, as long as words: half of their power tells positions
    apart, half tells images apart. Tokens as they come are many times longer than words, and nearly all of it is constant.
    """

    def __init__(self, dim: int, length: float):
        super().__init__()
        self.length = length
        self.common = RunningMean(dim)
        self.register_buffer("power", torch.ones(2))  # mean squared length of the two parts

    def forward(self, tokens: Tensor) -> Tensor:
        image = tokens.mean(1, keepdim=True)  # (B, 1, D), what the positions of an image have in common
        parts = (tokens - image, self.common(image))
        if self.training:
            now = torch.stack([x.detach().float().square().sum(-1).mean() for x in parts])
            self.power.lerp_(now, 1 / self.common.steps)
        scales = self.length / (2 * self.power + 1e-6).sqrt()
        return sum(x * scale for x, scale in zip(parts, scales.to(tokens.dtype), strict=True))


class CentredStates(nn.Module):
    """Hidden states without their running means, one for the image tokens and one for the words of each layer.

    A constant makes up most of what a language model's states are; VLSA's layer norm would keep it and lose the rest.
    """

    def __init__(self, dim: int, layers: tuple[int, ...] = ()):
        super().__init__()
        names = [f"{kind}{layer}" for layer in ("", *layers) for kind in ("image", "words")]
        self.means = nn.ModuleDict({name: RunningMean(dim) for name in names})

    def forward(self, states: LanguageStates) -> LanguageStates:
        return states.map(lambda name, x: self.means[name](x, states.valid if name.startswith("words") else None))


@dataclass(frozen=True)
class VlsaShape:
    """What a variant needs to know of the models it joins."""

    llm_dim: int  # D
    sam_dim: int  # C
    grid: tuple[int, int]  # (h, w) of a whole image; training windows have fewer
    ratio: float  # of the pixel shuffle


class VLSA(nn.Module):
    """Base class of all variants: `forward` once per image and phrase, `inject` once per set of prompts.

    `reads` says where the words stand: "before" the image, so that the states at its tokens depend on them (and the image
    is read again for each phrase), or "after" it, where a new phrase costs its own few tokens. `layers` are numbers of
    further layers whose states `forward` wants. A class sets them, or its constructor.
    """

    reads: str = "before"
    layers: tuple[int, ...] = ()

    def __init__(self, shape: VlsaShape):
        super().__init__()
        self.shape = shape

    def __call__(self, states: LanguageStates | Tensor) -> Tensor:
        """`forward` of LanguageStates where its argument is called states, else of the states (B, N, D) at image tokens."""
        if "states" in inspect.signature(self.forward).parameters:
            return super().__call__(LanguageStates(states) if isinstance(states, Tensor) else states)
        return super().__call__(states if isinstance(states, Tensor) else states.image)

    def forward(self, states: LanguageStates) -> Tensor:
        """States of B images and the words about each -> knowledge (B, ...), computed once per image and phrase.

        A variant that needs no words may be written as forward(self, hidden) and gets hidden (B, N, D) = states.image.
        """
        raise NotImplementedError("A VLSA variant defines forward(states) -> knowledge.")

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


def built_in(name: str):
    """Class decorator of the package's own variants, whose names cannot be taken."""
    return lambda cls: _BUILT_IN.setdefault(name, cls)


@built_in("paper")
class PaperVLSA(VLSA):
    """The paper's module: MLP, inverse pixel shuffle, channel norm, then alpha * x + beta replaces the dense prompt.

    Words change its instruction ("Segment the mitochondrion" for "Describe the image in detail").

    Source: paper, section 3.2.1 and Table 1 (`learned_scale_shift`, `dropout`); the order of steps is the official code's.
    """

    def __init__(self, shape: VlsaShape, learned_scale_shift: bool = True, dropout: float = 0.0):
        super().__init__(shape)
        width = round(shape.sam_dim / shape.ratio**2)
        self.mlp = norm_mlp(shape.llm_dim, width, width, dropout)
        self.scale = nn.Parameter(torch.full((1,), 0.1)) if learned_scale_shift else None
        self.shift = nn.Parameter(torch.zeros(1)) if learned_scale_shift else None

    def forward(self, states: LanguageStates) -> Tensor:
        x = pixel_unshuffle(to_grid(self.mlp(states.image)), self.shape.ratio)  # (B, N, 4C) -> (B, h, w, C)
        x = F.layer_norm(x, x.shape[-1:])  # over the channels of each position, without parameters
        x = x if self.scale is None else x * self.scale + self.shift
        return x.permute(0, 3, 1, 2)  # (B, C, h, w)


def to_grid(tokens: Tensor) -> Tensor:
    """Image tokens (B, N, X) back on their square grid (B, sqrt(N), sqrt(N), X)."""
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise InputError(f"{tokens.shape[1]} image tokens do not form a square grid; pass all tokens of one image.")
    return tokens.unflatten(1, (side, side))
