"""Less memory while training: what a layer computes is dropped and computed again when its gradient is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from ullsam.errors import InputError

RECOMPUTE = ("no", "cheap", "all")  # what TrainConfig.recompute may be
aten = torch.ops.aten
EXPENSIVE = (  # what costs nearly all of the time and little of the memory
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
)


def recompute(layers: Iterable[nn.Module], keep_products: bool = True) -> None:
    """Makes layers keep little for the backward pass; results and gradients stay the same.

    Args:
        layers: changed in place, for example a language model's `model.layers`; each is a function of its arguments.
        keep_products: True keeps the results of matrix products and attention and computes only what is cheap again;
            False keeps nothing but the layer's input, which costs one more forward pass.

    Source: Chen et al. 2016, Training deep nets with sublinear memory cost.
    """
    keep = {"context_fn": partial(create_selective_checkpoint_contexts, list(EXPENSIVE))} if keep_products else {}
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, **keep)


@contextmanager
def less_memory(layers: list[nn.Module], kind: str) -> Iterator[None]:
    """Trains inside with less memory: of each of the layers, for example `ULLSAM.layers()`, little is kept.

    Args:
        layers: changed in place while inside.
        kind: "no" keeps everything; "cheap" keeps matrix products and computes again what costs little time; "all" keeps
            nothing but the layers' inputs, which costs one more forward pass.
    """
    if kind not in RECOMPUTE:
        raise InputError(f"recompute is {kind!r}; give one of {', '.join(RECOMPUTE)}.")
    layers = [] if kind == "no" else layers
    recompute(layers, keep_products=kind == "cheap")
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own is seen again
