"""Losses of masks (BCE, Dice, the error of the estimated quality), of every pixel, and of the words of a caption."""

from __future__ import annotations

import re
import zlib

import torch
from torch import Tensor
from torch.nn import functional as F

WORD_PLACES = 512  # places that words are hashed into


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


def mask_losses(logits: Tensor, iou: Tensor, truth: Tensor, valid: Tensor, balance: bool) -> dict[str, Tensor]:
    """Means over the valid masks.

    Args:
        logits: (M, h, w) low-resolution mask logits, enlarged here to the truth's size; iou: (M,) estimated quality.
        truth: (M, H, W) 0/1; valid: (M,) 1 where the mask counts, 0 where it only fills the batch.

    Returns:
        "bce", "dice", "iou" losses and "dice_score" (of hard masks, for the log).
    """
    logits = F.interpolate(logits[:, None].float(), truth.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    quality = true_iou(logits, truth)
    each = {
        "bce": bce_loss(logits, truth, balance),
        "dice": dice_loss(logits, truth),
        "iou": (iou.float() - quality) ** 2,
        "dice_score": 2 * quality / (1 + quality),
    }
    return {name: (value * valid).sum() / valid.sum().clamp(min=1) for name, value in each.items()}


def dense_targets(labels: Tensor, stride: int = 4) -> tuple[Tensor, Tensor]:
    """Where objects are, where they end, and where each place's object has its centre.

    Args:
        labels: (B, S, S) object ids, 0 for background.

    Returns:
        0/1 maps (B, 2, S/stride, S/stride): foreground, and places whose neighbours carry another label; and offsets
        (B, 2, S/stride, S/stride) in x and y to the object's centre of mass, in units of the root of its area, 0
        outside objects.
    """
    x = labels[:, stride // 2 :: stride, stride // 2 :: stride].long()  # (B, s, s)
    near = x[:, None].float()
    highest, lowest = F.max_pool2d(near, 3, 1, 1), -F.max_pool2d(-near, 3, 1, 1)
    maps = torch.cat([near > 0, highest != lowest], dim=1).float()
    own = x + (x.amax() + 1) * torch.arange(len(x), device=x.device)[:, None, None]  # ids that differ between images
    area = own.flatten().bincount()
    places = torch.meshgrid(*(torch.arange(n, device=x.device) for n in x.shape[1:]), indexing="ij")  # rows, columns
    offsets = [_to_centre(place.expand_as(x).float(), own, area) for place in reversed(places)]
    return maps, torch.stack(offsets, dim=1) * maps[:, :1]


def _to_centre(place: Tensor, own: Tensor, area: Tensor) -> Tensor:
    """Along one axis: from each place to the mean place of its object, over the root of the object's area."""
    centre = own.flatten().bincount(place.flatten()) / area.clamp(min=1)
    return (centre[own] - place) / area[own].sqrt()


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
    """Which words the captions hold, as shares (B, 512): each different word in the place that its checksum names."""
    targets = torch.zeros(len(captions), WORD_PLACES)
    for row, caption in zip(targets, captions, strict=True):
        row[[zlib.crc32(word.encode()) % WORD_PLACES for word in re.findall(r"\w+", caption.lower())]] = 1
    return targets / targets.sum(1, keepdim=True).clamp(min=1)


def word_loss(logits: Tensor, captions: list[str]) -> Tensor:
    """Cross-entropy between predicted and actual words, their order ignored: logits (B, 512) of B images.

    Source: "Learning visual features from large weakly supervised data" (Joulin et al. 2016).
    """
    return F.cross_entropy(logits.float(), word_targets(captions).to(logits.device))
