"""SAM's transformer block and its attention with relative positions: exact, faster, and with less in memory at once.

Letters: B images or windows, H heads, n = h*w positions of the grid, d width of one head, D = H*d width of the transformer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn
from torch.nn import functional as F

AT_ONCE = {"cpu": 2**21, "other": 2**27}  # attention weights that exist at the same time; on a CPU they stay in its cache
MLP_AT_ONCE = 2**23  # values between the two layers of the MLP that exist at the same time, where no gradient is needed


class FastBlock(nn.Module):
    """A block of SAM's image encoder made of its parts: same names, same result up to rounding.

    Queries, keys and values are computed before the grid is cut into windows, so that nothing is multiplied with padding
    (19 % of SAM's grid of 64 x 64 with windows of 14).

    Args:
        norm1, norm2, mlp: of segment_anything's block; attn: takes (B, h, w, D) and the side of its windows.
        window_size: side of the windows in positions; 0 for the whole grid.
    """

    def __init__(self, norm1: nn.Module, attn: nn.Module, norm2: nn.Module, mlp: nn.Module, window_size: int):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp, self.window_size = norm1, attn, norm2, mlp, window_size

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), self.window_size)
        return x + self._mlp(self.norm2(x))

    def _mlp(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.mlp(x)
        rows = x.flatten(0, 1)[None]  # (B, h, w, D) -> (1, B*h, w, D)
        count = -(-x[..., 0].numel() * self.mlp.lin1.out_features // MLP_AT_ONCE)
        hidden = (self.mlp.act(quick_linear(self.mlp.lin1, part)) for part in rows.chunk(count, 1))
        return torch.cat([quick_linear(self.mlp.lin2, part) for part in hidden], 1).view(x.shape)


class FastAttention(Attention):
    """SAM's attention on PyTorch's fused kernel: same parameters, same result up to rounding.

    With `normalise` queries and keys of each head are normalised first, so that no weight can make attention look at one
    position only. Source: "Scaling vision transformers to 22 billion parameters" (Dehghani et al. 2023).
    """

    def __init__(self, dim: int, heads: int, use_rel_pos: bool, side: int, normalise: bool = False):
        super().__init__(dim, heads, True, use_rel_pos, input_size=(side, side))
        self.q_norm, self.k_norm = (nn.LayerNorm(dim // heads) if normalise else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, window: int = 0) -> Tensor:
        h, w = x.shape[1:3]
        side, bias = (window, window) if window else (h, w), self.qkv.bias  # padding is zero, its products are the bias
        pairs = zip(quick_linear(self.qkv, x).chunk(3, -1), bias.chunk(3), strict=True)  # each (b, h, w, heads*d)
        q, k, v = (to_windows(y, side, self.num_heads, padding) for y, padding in pairs)  # (b*windows, heads, n, d)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.use_rel_pos:
            grid = q.unflatten(2, side)  # (b, heads, h, w, d)
            tables = (get_rel_pos(n, n, x).to(q.dtype) for n, x in zip(side, (self.rel_pos_h, self.rel_pos_w), strict=True))
            names = ("bnhwc,hkc->bnhwk", "bnhwc,wkc->bnhwk")  # what each query adds for each row, and for each column
            terms = (torch.einsum(name, grid, x).flatten(2, 3) for name, x in zip(names, tables, strict=True))
            x = relative_attention(q, k, v, *terms)
        else:
            x = F.scaled_dot_product_attention(q, k, v)
        return quick_linear(self.proj, from_windows(x, side, h, w))  # (b, h, w, heads*d)


def quick_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer on (B, h, w, D); in float32 on a CPU as a convolution, for which PyTorch has the faster library (oneDNN)."""
    usual = x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
    if usual or torch.is_grad_enabled() or not torch.backends.mkldnn.is_available():
        return layer(x)
    rows = x.flatten(0, 1)[None].permute(0, 3, 1, 2)  # (B, h, w, D) -> (1, D, B*h, w)
    return F.conv2d(rows, layer.weight[..., None, None], layer.bias).permute(0, 2, 3, 1).reshape(*x.shape[:3], -1)


def to_windows(x: Tensor, side: tuple[int, int], heads: int, padding: Tensor) -> Tensor:
    """(B, h, w, D) -> (B*windows, H, n, d), padded at the bottom and on the right with a vector (D,)."""
    b, h, w, _ = x.shape
    down, right = -h % side[0], -w % side[1]
    if down or right:
        whole = padding.to(x.dtype).expand(b, h + down, w + right, -1).clone()
        whole[:, :h, :w] = x
        x = whole
    x = x.unflatten(3, (heads, -1)).unflatten(2, (-1, side[1])).unflatten(1, (-1, side[0]))  # (B, i, row, j, column, H, d)
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(0, 2)


def from_windows(x: Tensor, side: tuple[int, int], h: int, w: int) -> Tensor:
    """What `to_windows` made of (B, h, w, D), back without the padding."""
    down, across = -(-h // side[0]), -(-w // side[1])
    x = x.unflatten(2, side).unflatten(0, (-1, down, across))  # (B, i, j, H, row, column, d)
    x = x.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4).flatten(1, 2)  # (B, i*row, j*column, D)
    return x[:, :h, :w]


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
        rounded = q.device.type == "cpu" and q.dtype == torch.bfloat16 and not any(ctx.needs_input_grad)
        attend = _products if rounded else F.scaled_dot_product_attention
        for keys, queries in _parts(q, at_once):
            out[queries] = attend(q[queries], k[keys], v[keys], _bias(rows[queries], columns[queries]))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        tensors = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in tensors]
        for keys, queries in _parts(grad, ctx.at_once):
            positions = (queries, keys, keys, queries, queries)
            inputs = [x[position].detach().requires_grad_() for x, position in zip(tensors, positions, strict=True)]
            with torch.enable_grad():
                out = _plain(*inputs)
            pieces = torch.autograd.grad(out, inputs, grad[queries])
            for whole, position, piece in zip(grads, positions, pieces, strict=True):
                whole[position] += piece
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


def _products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The same by matrix products, on a CPU in bfloat16 faster than the fused kernel; weights before softmax are rounded."""
    shape, scaled = q.shape, q * q.shape[-1] ** -0.5
    scores = bias.flatten(0, 1).baddbmm_(scaled.flatten(0, 1), k.flatten(0, 1).mT)  # (B*H, n, n), in the bias's place
    return (scores.softmax(-1) @ v.flatten(0, 1)).view(shape)


def _plain(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The same by matrix products; the weights before softmax need float32, where bfloat16 would round them."""
    with torch.autocast(q.device.type, enabled=False):
        scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().mT + _bias(rows.float(), columns.float())
        return scores.softmax(-1).to(v.dtype) @ v
