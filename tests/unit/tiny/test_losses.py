"""The tiny model's losses against hand-computed values and properties."""

import pytest
import torch
from torch.nn import functional as F

from ullsam.tiny.losses import WORD_BINS, balanced_bce, dense_loss, dense_targets, feature_spread, word_loss, word_targets

TRUTH = torch.tensor([[[1.0, 1], [0, 0]], [[1.0, 0], [0, 0]]])


def test_balanced_bce_survives_masks_of_one_kind():
    for truth in (torch.zeros(1, 4, 4), torch.ones(1, 4, 4)):
        assert torch.isfinite(balanced_bce(torch.randn(1, 4, 4), truth)).all()


def test_dense_targets_by_hand():
    labels = torch.zeros(1, 16, 20, dtype=torch.int32)
    labels[0, :, 8:12], labels[0, :, 12:] = 3, 5  # columns 2, then 3 and 4 of the grid of stride 4
    maps, offsets = dense_targets(labels)
    assert maps[0, 0].tolist() == [[0, 0, 1, 1, 1]] * 4
    assert maps[0, 1].tolist() == [[0, 1, 1, 1, 0]] * 4
    right, down = offsets[0]  # objects of 4 and 8 places, centres at columns 2 and 3.5, both at row 1.5
    assert right[0].tolist() == pytest.approx([0, 0, 0, 0.5 / 8**0.5, -0.5 / 8**0.5])
    assert down[:, 2].tolist() == pytest.approx([0.75, 0.25, -0.25, -0.75]) and down[:, 0].eq(0).all()


def test_dense_loss_is_least_for_the_truth():
    labels = torch.randint(0, 4, (2, 8, 8)).repeat_interleave(4, 1).repeat_interleave(4, 2)  # (2, 32, 32)
    maps, offsets = dense_targets(labels)
    perfect = torch.cat([40 * (maps - 0.5), offsets], dim=1)
    assert dense_loss(perfect, labels).item() == pytest.approx(0, abs=1e-6)
    assert dense_loss(torch.zeros(2, 4, 8, 8), labels) > 0.5


def test_words_count_once_and_their_order_does_not():
    targets = word_targets(["Nuclei and nuclei, and cells.", "cells: and NUCLEI", "", "axons"])
    assert torch.equal(targets[0], targets[1]) and targets[0].max().item() == pytest.approx(1 / 3)
    assert targets.sum(1).tolist() == pytest.approx([1, 1, 0, 1]) and not torch.equal(targets[0], targets[3])


def test_word_loss_by_hand():
    captions = ["nuclei and cells", "axons"]
    even = word_loss(torch.zeros(2, WORD_BINS), captions).item()
    assert even == pytest.approx(torch.log(torch.tensor(float(WORD_BINS))).item())
    right = word_loss(50 * (word_targets(captions) > 0).float(), captions).item()
    assert right == pytest.approx(torch.log(torch.tensor(3.0)).item() / 2, abs=1e-4)  # three words share the first


def test_balanced_bce_weighs_both_sides():
    logits = torch.randn(2, 2, 2)
    each = F.binary_cross_entropy_with_logits(logits, TRUTH, reduction="none")
    inside, outside = each[1][TRUTH[1] == 1].mean(), each[1][TRUTH[1] == 0].mean()
    assert balanced_bce(logits, TRUTH)[1].item() == pytest.approx(((inside + outside) / 2).item())


def test_spread_is_the_fraction_of_power_that_varies():
    flat, varied = torch.ones(2, 3, 4, 4), torch.randn(2, 3, 64, 64)
    assert feature_spread(flat) == 0 and feature_spread(varied) > 0.99
    torch.testing.assert_close(feature_spread(varied + 1), torch.tensor(0.5), atol=0.02, rtol=0)
