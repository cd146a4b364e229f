"""Masks computed where an object is equal those of the whole image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ullsam import Square, from_square
from ullsam.accel.upsampling import enlarge_masks


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([8, 13, 32]),
    st.sampled_from(["corner", "center"]),
    st.floats(-2.5, 1),
    st.integers(0, 99),
)
def test_equals_interpolation_of_everything(height, width, side, placement, shift, seed):
    square = Square(height, width, 64, placement)
    logits = torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed)) + shift
    whole = from_square(logits, square).numpy()
    masks = enlarge_masks(logits, square)
    assert masks.shape == whole.shape and masks.dtype == bool
    clear = np.abs(whole) > 1e-4  # next to 0 rounding decides
    assert np.array_equal(masks[clear], whole[clear] > 0)


def test_nothing_and_everything():
    square = Square(30, 50, 64)
    masks = enlarge_masks(torch.stack([torch.full((16, 16), -1.0), torch.full((16, 16), 1.0)]), square)
    assert not masks[0].any() and masks[1].all()
    assert enlarge_masks(torch.zeros(0, 16, 16), square).shape == (0, 30, 50)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_floats(dtype):
    logits = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    square = Square(40, 40, 64)
    assert np.array_equal(enlarge_masks(logits, square), enlarge_masks(logits.float(), square))
