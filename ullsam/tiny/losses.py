"""Losses that training from scratch needs: of every pixel, of a caption's words, and of small objects."""

from __future__ import annotations

import re
import zlib

import torch
from torch import Tensor
from torch.nn import functional as F

WORD_BINS = 512  # bins that words are hashed into


def balanced_bce(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy of each mask, (M, H, W) -> (M,), inside and outside averaged separately with the same weight.

    A small object then counts as much as its surroundings; plain BCE can teach a network from scratch to predict nothing.
    """
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").flatten(1)  # (M, H*W)
    inside = truth.flatten(1)
    return 0.5 * sum((loss * part).sum(1) / part.sum(1).clamp(min=1) for part in (inside, 1 - inside))


def feature_spread(states: Tensor) -> Tensor:
    """Fraction of the states' power that differs between positions and images, 0..1; near 0 they say nothing."""
    x = states.float().transpose(0, 1).flatten(1)  # (B, C, h, w) -> (C, B*h*w)
    return x.var(1, unbiased=False).sum() / (x**2).mean(1).sum()


def dense_targets(labels: Tensor, stride: int = 4) -> tuple[Tensor, Tensor]:
    """Where objects are, where they end, and where each position's object has its centre.

    Args:
        labels: (B, S, S) object ids, 0 for background.

    Returns:
        0/1 maps (B, 2, S/stride, S/stride): foreground, and positions whose neighbours carry another label; and offsets
        (B, 2, S/stride, S/stride) in x and y to the object's centre of mass, in units of the root of its area, 0
        outside objects.
    """
    x = labels[:, stride // 2 :: stride, stride // 2 :: stride].long()  # (B, s, s)
    near = x[:, None].float()
    highest, lowest = F.max_pool2d(near, 3, 1, 1), -F.max_pool2d(-near, 3, 1, 1)
    maps = torch.cat([near > 0, highest != lowest], dim=1).float()
    own = x + (x.amax() + 1) * torch.arange(len(x), device=x.device)[:, None, None]  # ids that differ between images
    area = own.flatten().bincount()
    positions = torch.meshgrid(*(torch.arange(n, device=x.device) for n in x.shape[1:]), indexing="ij")  # rows, columns
    offsets = []
    for position in reversed(positions):  # along x, then y: to the mean position of the object, over the root of its area
        position = position.expand_as(x).float()
        centre = own.flatten().bincount(position.flatten()) / area.clamp(min=1)
        offsets.append((centre[own] - position) / area[own].sqrt())
    return maps, torch.stack(offsets, dim=1) * maps[:, :1]


def dense_loss(output: Tensor, labels: Tensor) -> Tensor:
    """BCE of foreground and borders plus the mean offset error inside objects: output (B, 4, s, s), labels (B, S, S).

    The idea is uSAM's decoder for automatic segmentation: distances to centres and borders, seen everywhere at once.
    """
    maps, offsets = dense_targets(labels, labels.shape[-1] // output.shape[-1])
    output = output.float()
    bce = F.binary_cross_entropy_with_logits(output[:, :2], maps)
    error = F.smooth_l1_loss(output[:, 2:], offsets, reduction="none", beta=0.1) * maps[:, :1]
    return bce + error.sum() / maps[:, :1].sum().clamp(min=1)


def word_targets(captions: list[str]) -> Tensor:
    """Which words the captions hold, as fractions (B, 512): each different word in the bin that its checksum names."""
    targets = torch.zeros(len(captions), WORD_BINS)
    for row, caption in zip(targets, captions, strict=True):
        row[[zlib.crc32(word.encode()) % WORD_BINS for word in re.findall(r"\w+", caption.lower())]] = 1
    return targets / targets.sum(1, keepdim=True).clamp(min=1)


def word_loss(logits: Tensor, captions: list[str]) -> Tensor:
    """Cross-entropy between predicted and actual words, their order ignored: logits (B, 512) of B images.

    Source: "Learning visual features from large weakly supervised data" (Joulin et al. 2016).
    """
    return F.cross_entropy(logits.float(), word_targets(captions).to(logits.device))
