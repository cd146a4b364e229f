"""Tries a VLSA variant on random input and names the first mistake, before a student trains it for nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ullsam.errors import InputError
from ullsam.vlsa import VLSA, VlsaShape, build_vlsa


def check_vlsa(name: str, shape: VlsaShape | None = None, **options) -> dict:
    """Tries a variant on random input and names the first mistake: shapes, finite values, gradients.

    Returns:
        {"variant", "parameters", "knowledge": shape for one image, "sparse": shape for 5 prompts}.

    Raises:
        InputError: what is wrong with the variant and what it should return.
    """
    shape = shape or VlsaShape(llm_dim=48, sam_dim=32, grid=(8, 8), ratio=0.5)
    module = build_vlsa(name, shape, **options)
    tokens = round(shape.grid[0] * shape.grid[1] * shape.ratio**2)
    hidden = torch.randn(2, tokens, shape.llm_dim, generator=torch.Generator().manual_seed(0))
    knowledge = _attempt("forward", module, hidden)
    _expect(isinstance(knowledge, Tensor), f"forward returns a {type(knowledge).__name__}, it must return a tensor")
    _expect(len(knowledge) == 2, f"forward turns 2 images into {len(knowledge)} entries; keep the batch axis first")
    for count in (1, 5):
        outputs = _check_inject(module, knowledge[:1], count, shape)
    total = sum(x.sum() for x in outputs)
    if total.requires_grad:
        total.backward()
    idle = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    _expect(not idle, f"no gradient reaches {', '.join(idle)}; use every parameter in forward or inject")
    sizes = {"knowledge": tuple(knowledge.shape[1:]), "sparse": tuple(outputs[0].shape)}
    return {"variant": name, "parameters": sum(p.numel() for p in module.parameters()), **sizes}


def _check_inject(module: VLSA, knowledge: Tensor, count: int, shape: VlsaShape) -> tuple[Tensor, Tensor]:
    h, w = shape.grid
    sparse, dense = torch.randn(count, 3, shape.sam_dim), torch.randn(count, shape.sam_dim, h, w)
    result = _attempt("inject", module.inject, knowledge.expand(count, *knowledge.shape[1:]), sparse, dense)
    _expect(isinstance(result, tuple) and len(result) == 2, "inject must return two tensors: sparse, dense")
    new_sparse, new_dense = result
    right = new_sparse.ndim == 3 and new_sparse.shape[::2] == sparse.shape[::2]
    found, wanted = tuple(new_sparse.shape), f"({count}, any, {shape.sam_dim})"
    _expect(right, f"for {count} prompts inject returns sparse {found}, expected {wanted}")
    found, wanted = tuple(new_dense.shape), tuple(dense.shape)
    _expect(found == wanted, f"for {count} prompts inject returns dense {found}, expected {wanted}")
    finite = bool(torch.isfinite(new_sparse).all() and torch.isfinite(new_dense).all())
    _expect(finite, "the output has NaN or infinite values; look for divisions and logarithms")
    return result


def _attempt(name: str, method: Callable, *tensors: Tensor):
    try:
        return method(*tensors)
    except (RuntimeError, IndexError, TypeError, ValueError, AttributeError) as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise InputError(f"VLSA check: {name} fails on tensors of shapes {shapes}: {error}.") from error


def _expect(condition: bool, mistake: str) -> None:
    if not condition:
        raise InputError(f"VLSA check: {mistake}.")
