"""The attention with relative positions against its definition, and the fast block against segment_anything's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.modeling.image_encoder import Attention, Block

from ullsam.accel.attention import FastAttention, FastBlock, relative_attention

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


@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("shape", [(4, 4), (3, 5)])
def test_fast_attention_is_the_same_attention(rel_pos, shape):
    attention = FastAttention(32, 4, rel_pos, max(shape))
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, *shape, 32)
    torch.testing.assert_close(attention(x), Attention.forward(attention, x), rtol=1e-4, atol=1e-5)


def theirs_and_ours(window, shape):
    """segment_anything's block and ours of the same weights, and an input whose last windows are padded."""
    theirs = Block(32, 4, use_rel_pos=True, window_size=window, input_size=(max(shape), max(shape)))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    attention = FastAttention(32, 4, True, window or max(shape))
    ours = FastBlock(theirs.norm1, attention, theirs.norm2, theirs.mlp, window)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours, torch.randn(2, *shape, 32)


@pytest.mark.parametrize("window, shape", [(0, (4, 5)), (2, (4, 4)), (3, (4, 5)), (4, (3, 9))])
def test_fast_block_is_the_same_block(window, shape, monkeypatch):
    theirs, ours, x = theirs_and_ours(window, shape)
    expected = theirs(x)
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr("ullsam.accel.attention.MLP_AT_ONCE", 1000)  # several parts
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)


def test_fast_block_has_the_same_gradients():
    theirs, ours, x = theirs_and_ours(3, (4, 5))
    weight = torch.randn(2, 4, 5, 32)
    grads = [torch.autograd.grad((block(x) * weight).sum(), list(block.parameters())) for block in (theirs, ours)]
    names = ([name for name, _ in block.named_parameters()] for block in (theirs, ours))
    theirs_by_name, ours_by_name = (dict(zip(n, g, strict=True)) for n, g in zip(names, grads, strict=True))
    for name, grad in theirs_by_name.items():  # the relative positions of padding count too
        torch.testing.assert_close(ours_by_name[name], grad, rtol=1e-3, atol=1e-3 * float(grad.abs().max()))


@torch.no_grad()
def test_normalised_attention_stays_wide_whatever_the_weights():
    x, near = torch.randn(1, 4, 4, 32), 0.01 * torch.randn(16, 1, 1, 32)
    jumps = []
    for held in (False, True):
        attention = FastAttention(32, 4, False, 4, held)
        attention.qkv.weight[:64] *= 1000  # queries and keys
        before = attention(x)
        jumps.append(float((attention(x + near) - before).abs().max() / before.abs().max()))
    assert jumps[1] < 0.2 < jumps[0]  # a small change moves attention to single places by a jump
