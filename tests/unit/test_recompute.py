"""Layers that are computed again: same results, less kept."""

import pytest
import torch

from ullsam import ULLSAM
from ullsam.recompute import recompute


def run(model, tokens):
    """Knowledge-like states, the gradient of the tokens, and the numbers that autograd kept in between."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        out = model.llm.hidden(tokens)
    return out, torch.autograd.grad(out.square().sum(), tokens)[0], sum(kept)


@pytest.mark.parametrize("keep_products", [True, False])
def test_language_model_gives_the_same_and_keeps_less(keep_products):
    model = ULLSAM.from_preset("debug")
    tokens = torch.randn(2, 4, model.llm.dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out, grad, kept = run(model, tokens)
    recompute(model.llm.lm.model.layers, keep_products)
    again, same, fewer = run(model, tokens)
    torch.testing.assert_close(again, out, rtol=0, atol=1e-6)
    torch.testing.assert_close(same, grad, rtol=1e-5, atol=1e-6)
    assert keep_products or fewer < kept / 2  # kept products bypass the hooks


def test_names_of_the_weights_stay():
    model = ULLSAM.from_preset("debug")
    before = list(model.state_dict())
    recompute(model.sam.image_encoder.blocks)
    assert list(model.state_dict()) == before


@pytest.mark.parametrize("keep_products", [True, False])
def test_encoder_weights_get_the_same_gradients(keep_products):
    model, pixels = ULLSAM.from_preset("debug"), torch.randn(1, 3, 64, 64)
    encoder = model.sam.image_encoder
    grads = []
    for _ in range(2):
        encoder.zero_grad()
        model.encode(pixels).embedding.square().sum().backward()
        grads.append([p.grad.clone() for p in encoder.parameters()])
        recompute(encoder.blocks, keep_products)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-5, atol=1e-5)
