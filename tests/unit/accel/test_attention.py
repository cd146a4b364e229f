"""The attention with relative positions against its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ullsam.accel.attention import relative_attention

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.sampled_from([4, 8]))


def inputs(sizes, dtype=torch.float64):
    b, heads, h, w, d = sizes
    generator = torch.Generator().manual_seed(0)
    shapes = [(b, heads, h * w, x) for x in (d, d, d, h, w)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def definition(q, k, v, rows, columns):
    """One weight for each pair of places, from the equation."""
    bias = rows.repeat_interleave(columns.shape[-1], -1) + columns.repeat(1, 1, 1, rows.shape[-1])
    return (q @ k.mT / q.shape[-1] ** 0.5 + bias).softmax(-1) @ v


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 800))
def test_equals_its_definition_in_parts_of_any_size(sizes, at_once):
    mine, theirs = ([x.float().detach().requires_grad_() for x in inputs(sizes)] for _ in range(2))
    weight = torch.randn(mine[0].shape, generator=torch.Generator().manual_seed(1))
    out, expected = relative_attention(*mine, at_once), definition(*theirs)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad((out * weight).sum(), mine)
    torch.testing.assert_close(grads, torch.autograd.grad((expected * weight).sum(), theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 40, 10**6])
def test_bfloat16_differs_by_its_rounding_only(at_once):
    exact = inputs((2, 2, 4, 4, 8), torch.float32)
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    out = relative_attention(*rounded, at_once)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), definition(*exact), rtol=0.05, atol=0.05)
    with torch.inference_mode():  # another way, see _products
        torch.testing.assert_close(relative_attention(*rounded, at_once).float(), out.float(), rtol=0.05, atol=0.05)
    grads = torch.autograd.grad(out.float().square().sum(), rounded)
    expected = torch.autograd.grad(definition(*exact).square().sum(), exact)
    for grad, right in zip(grads, expected, strict=True):
        assert (grad.float() - right).norm() < 0.05 * right.norm()


def test_gradient_inside_autocast_is_that_outside():
    first, second = inputs((1, 2, 3, 3, 4), torch.float32), inputs((1, 2, 3, 3, 4), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        relative_attention(*first).sum().backward()
    relative_attention(*second).sum().backward()
    torch.testing.assert_close([x.grad for x in first], [x.grad for x in second], rtol=1e-2, atol=1e-2)
