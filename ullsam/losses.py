"""Losses of interactive segmentation: BCE, Dice and the error of the estimated mask quality."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dice_loss(logits: Tensor, truth: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss of each mask: (M, H, W) logits and 0/1 truth -> (M,) in 0..1. Source: paper, section 3.3."""
    p, t = logits.sigmoid().flatten(1), truth.flatten(1)  # (M, H*W)
    return 1 - (2 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)


def bce_loss(logits: Tensor, truth: Tensor, balance: bool = False) -> Tensor:
    """Binary cross-entropy of each mask, (M, H, W) -> (M,).

    Args:
        balance: average inside and outside pixels separately and give both the same weight, so that a small object
            counts as much as its surroundings; plain BCE teaches a network from scratch to predict nothing.
    """
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").flatten(1)  # (M, H*W)
    if not balance:
        return loss.mean(1)
    inside = truth.flatten(1)
    outside = 1 - inside
    return 0.5 * sum((loss * part).sum(1) / part.sum(1).clamp(min=1) for part in (inside, outside))


@torch.no_grad()
def true_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of each thresholded mask with the truth, (M, H, W) -> (M,)."""
    p, t = (logits > 0).flatten(1), (truth > 0.5).flatten(1)
    return (p & t).sum(1) / (p | t).sum(1).clamp(min=1)


def mask_losses(
    logits: Tensor, iou: Tensor, truth: Tensor, valid: Tensor, balance: bool
) -> dict[str, Tensor]:
    """Means over the valid masks.

    Args:
        logits: (M, h, w) low-resolution mask logits, enlarged here to the truth's size; iou: (M,) estimated quality.
        truth: (M, H, W) 0/1; valid: (M,) 1 where the mask counts, 0 where it only fills the batch.

    Returns:
        "bce", "dice", "iou" losses and "dice_score" (of hard masks, for the log).
    """
    logits = F.interpolate(logits[:, None].float(), truth.shape[1:], mode="bilinear", align_corners=False)[
        :, 0
    ]
    quality = true_iou(logits, truth)
    each = {
        "bce": bce_loss(logits, truth, balance),
        "dice": dice_loss(logits, truth),
        "iou": (iou.float() - quality) ** 2,
        "dice_score": 2 * quality / (1 + quality),
    }
    return {name: (value * valid).sum() / valid.sum().clamp(min=1) for name, value in each.items()}


def dense_targets(labels: Tensor, stride: int = 4) -> Tensor:
    """Where objects are and where they end: label maps (B, S, S) -> 0/1 maps (B, 2, S/stride, S/stride).

    The first map is foreground; the second holds the places whose neighbours carry another label.
    """
    x = labels[:, None, stride // 2 :: stride, stride // 2 :: stride].float()  # (B, 1, S/stride, S/stride)
    highest, lowest = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
    return torch.cat([x > 0, highest != lowest], dim=1).float()
