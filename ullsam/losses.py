"""Losses of masks: binary cross-entropy and Dice, as the paper trains them, and the error of the estimated quality."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def dice_loss(logits: Tensor, truth: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss of each mask: (M, H, W) logits and 0/1 truth -> (M,) in 0..1. Source: paper, section 3.3."""
    p, t = logits.sigmoid().flatten(1), truth.flatten(1)  # (M, H*W)
    return 1 - (2 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)


def bce_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy of each mask, (M, H, W) -> (M,). Source: paper, section 3.3."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").flatten(1).mean(1)


def presence_logit(logits: Tensor, pixels: int = 16) -> Tensor:
    """Whether there is anything: the mean of each mask's surest logits, (M, h, w) -> (M,)."""
    return logits.flatten(1).float().topk(pixels).values.mean(1)


@torch.no_grad()
def true_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of each thresholded mask with the truth, (M, H, W) -> (M,)."""
    p, t = (logits > 0).flatten(1), (truth > 0.5).flatten(1)
    return (p & t).sum(1) / (p | t).sum(1).clamp(min=1)


def mask_losses(
    logits: Tensor, truth: Tensor, valid: Tensor, bce: Callable = bce_loss, iou: Tensor | None = None
) -> dict[str, Tensor]:
    """Means over the valid masks.

    Args:
        logits: (M, h, w) low-resolution mask logits, enlarged here to the truth's size.
        truth: (M, H, W) 0/1; valid: (M,) 1 where the mask counts, 0 where it only fills the batch.
        bce: how the cross-entropy of each mask is taken; iou: (M,) estimated quality, where it is trained.

    Returns:
        "bce" and "dice" losses, with `iou` the "iou" loss of the mask-quality head, and "dice_score" of hard masks.
    """
    logits = F.interpolate(logits[:, None].float(), truth.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    quality = true_iou(logits, truth)
    each = {"bce": bce(logits, truth), "dice": dice_loss(logits, truth), "dice_score": 2 * quality / (1 + quality)}
    if iou is not None:
        each["iou"] = (iou.float() - quality) ** 2
    return {name: (value * valid).sum() / valid.sum().clamp(min=1) for name, value in each.items()}
