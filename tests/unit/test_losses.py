"""Losses against hand-computed values and properties."""

import pytest
import torch
from torch.nn import functional as F

from ullsam.losses import bce_loss, dice_loss, mask_losses, true_iou

TRUTH = torch.tensor([[[1.0, 1], [0, 0]], [[1.0, 0], [0, 0]]])


def test_dice_loss_by_hand():
    logits = torch.full((1, 2, 2), 0.0)  # probability 0.5 everywhere
    assert dice_loss(logits, TRUTH[:1], smooth=0).item() == pytest.approx(1 - 2 * 1 / (2 + 2))
    assert dice_loss(100 * (2 * TRUTH - 1), TRUTH).max().item() == pytest.approx(0)
    assert dice_loss(-100 * (2 * TRUTH - 1), TRUTH, smooth=0).min().item() == pytest.approx(1)


def test_bce_is_the_mean_over_pixels():
    logits = torch.randn(2, 2, 2)
    each = F.binary_cross_entropy_with_logits(logits, TRUTH, reduction="none")
    assert bce_loss(logits, TRUTH).tolist() == pytest.approx(each.mean((1, 2)).tolist())


def test_true_iou_by_hand():
    logits = torch.tensor([[[1.0, -1], [1, -1]]])  # predicts the left column
    assert true_iou(logits, TRUTH[:1]).item() == pytest.approx(1 / 3)


def test_filling_masks_do_not_count():
    logits, iou = torch.randn(2, 4, 4), torch.rand(2)
    truth = (torch.rand(2, 8, 8) > 0.5).float()
    both = mask_losses(logits, truth, torch.tensor([1.0, 0.0]), iou=iou)
    one = mask_losses(logits[:1], truth[:1], torch.ones(1), iou=iou[:1])
    assert all(both[k].item() == pytest.approx(one[k].item()) for k in one)
    none = mask_losses(logits, truth, torch.zeros(2), iou=iou)
    assert all(v.item() == 0 for v in none.values())


def test_the_quality_head_is_compared_with_the_true_iou():
    logits = torch.tensor([[[1.0, -1], [1, -1]]])
    found = mask_losses(logits, TRUTH[:1], torch.ones(1), iou=torch.tensor([0.5]))
    assert found["iou"].item() == pytest.approx((0.5 - 1 / 3) ** 2) and found["dice_score"].item() == pytest.approx(0.5)
    assert "iou" not in mask_losses(logits, TRUTH[:1], torch.ones(1))
