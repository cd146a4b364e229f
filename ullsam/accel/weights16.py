"""Language-model weights in the 16 bits of their file, computed with in float32: half the memory, the same numbers.

The weights stay mapped from the file on disk, which the operating system shares between all processes that use it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 8192  # a larger weight (the vocabulary) is widened in parts, which bounds the memory


class HalfLinear(nn.Linear):
    """A linear layer whose weight is widened to the input's type while it is used."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.out_features <= ROWS:
            return F.linear(x, self.weight.to(x.dtype), bias)
        y = torch.cat([F.linear(x, rows.to(x.dtype)) for rows in self.weight.split(ROWS)], dim=-1)
        return y if bias is None else y + bias


class HalfEmbedding(nn.Embedding):
    """An embedding whose rows are widened to float32 when they are looked up."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).float()


def widen_in_use(lm: nn.Module) -> nn.Module:
    """Lets a model with 16-bit weights compute in float32; its matrices stay as they are and where they are.

    The results are those of the model converted to float32, because widening is exact.
    """
    for module in list(lm.modules()):
        for name, child in module.named_children():
            if type(child) in (nn.Linear, nn.Embedding):
                setattr(module, name, _half(child))
        for name, parameter in module.named_parameters(recurse=False):
            if not isinstance(module, nn.Linear | nn.Embedding):
                setattr(module, name, nn.Parameter(parameter.detach().float(), parameter.requires_grad))
    return lm


def _half(layer: nn.Linear | nn.Embedding) -> nn.Module:
    """The same layer with the same tensors, in the class that widens them."""
    with torch.device("meta"):  # nothing is allocated
        if isinstance(layer, nn.Linear):
            half = HalfLinear(layer.in_features, layer.out_features, layer.bias is not None)
            half.bias = layer.bias
        else:
            half = HalfEmbedding(layer.num_embeddings, layer.embedding_dim, layer.padding_idx)
    half.weight = layer.weight
    return half.train(layer.training)
