"""Layers that are computed again: same results, less kept."""

import pytest
import torch

from ullsam import ULLSAM, InputError, Mixture, TrainConfig, fit
from ullsam.accel.checkpointing import RECOMPUTE, less_memory, recompute
from ullsam.config import PAPER_TRAINING


def run(model, tokens):
    """Knowledge-like states, the gradient of the tokens, and the numbers that autograd kept in between."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        out = model.llm.read(tokens).image
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


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_training_takes_the_same_steps(stage, tmp_path):
    weights = []
    for kind in RECOMPUTE:
        model = ULLSAM.from_preset("debug")
        config = TrainConfig(stage=stage, steps=2, batch_size=2, warmup=1, recompute=kind)
        fit(model, config, Mixture([], ["fluorescence_nuclei"], 1.0), tmp_path / kind, progress=False)
        weights.append(model.state_dict())
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights[2], weights[0], rtol=1e-4, atol=1e-5)
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_paper_s_training_asks_for_it_and_nothing_else_is_touched():
    assert all(config.recompute == "cheap" for config in PAPER_TRAINING.values()) and TrainConfig().recompute == "no"
    model = ULLSAM.from_preset("debug")
    inside = {}
    for kind in RECOMPUTE:
        with less_memory(model.layers(), kind):
            inside[kind] = sum("forward" in vars(module) for module in model.modules())
    assert inside == {"no": 0, "cheap": 2 + 2, "all": 2 + 2}  # blocks and layers
    with pytest.raises(InputError, match="recompute is 'yes'; give one of no, cheap, all"), less_memory(model, "yes"):
        pass
