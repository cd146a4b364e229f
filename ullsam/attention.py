"""SAM's attention with relative positions: exact, and without the whole matrix of attention weights in memory.

Letters: B images or windows, H heads, n = h*w places of the grid, d width of one head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

AT_ONCE = {"cpu": 2**21, "other": 2**27}  # attention weights that exist at the same time; on a CPU they stay in its cache


def relative_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, at_once: int | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + rows + columns) v, a part of the queries at a time.

    The forward pass is PyTorch's fused kernel with both terms summed into one bias; the backward pass computes the weights
    again instead of keeping them. On a CPU the fused kernel itself does not take a bias that is trained.

    Args:
        q, k, v: (B, H, n, d).
        rows: (B, H, n, h), what each query adds for each row of the grid; columns: (B, H, n, w), for each column.
        at_once: attention weights that exist at the same time, at least those of one query; None: what suits the device.

    Returns:
        (B, H, n, d). Source: Kirillov et al. 2023; the decomposed relative position is that of Li et al. 2022 (MViTv2).
    """
    at_once = at_once or AT_ONCE.get(q.device.type, AT_ONCE["other"])
    return _RelativeAttention.apply(q, k, v, rows, columns, at_once)


class _RelativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, rows, columns, at_once):
        ctx.save_for_backward(q, k, v, rows, columns)
        ctx.at_once = at_once
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2)  # heads side by side in memory
        for keys, queries in _parts(q, at_once):
            bias = _bias(rows[queries], columns[queries])
            out[queries] = F.scaled_dot_product_attention(q[queries], k[keys], v[keys], attn_mask=bias)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        tensors = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in tensors]
        for keys, queries in _parts(grad, ctx.at_once):
            places = (queries, keys, keys, queries, queries)
            inputs = [x[place].detach().requires_grad_() for x, place in zip(tensors, places, strict=True)]
            with torch.enable_grad():
                out = _plain(*inputs)
            pieces = torch.autograd.grad(out, inputs, grad[queries])
            for whole, place, piece in zip(grads, places, pieces, strict=True):
                whole[place] += piece
        return *grads, None


def _parts(x: Tensor, at_once: int) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Where (images, heads) and (images, heads, queries) of the next part stand: whole images, else heads, else queries."""
    sizes, steps = x.shape[:3], []
    for below in (sizes[1] * sizes[2] ** 2, sizes[2] ** 2, sizes[2]):
        steps.append(max(1, at_once // below))
    for i in range(0, sizes[0], steps[0]):
        for j in range(0, sizes[1], steps[1]):
            for first in range(0, sizes[2], steps[2]):
                keys = slice(i, i + steps[0]), slice(j, j + steps[1])
                yield keys, (*keys, slice(first, first + steps[2]))


def _bias(rows: Tensor, columns: Tensor) -> Tensor:
    return (rows[..., :, None] + columns[..., None, :]).flatten(3)  # (B, H, n, h, w) -> (B, H, n, n)


def _plain(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The same by matrix products; the weights before softmax need float32, where bfloat16 would round them."""
    with torch.autocast(q.device.type, enabled=False):
        scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().mT + _bias(rows.float(), columns.float())
        return scores.softmax(-1).to(v.dtype) @ v
