"""16-bit weights that are widened in use: the numbers of float32, the memory of the file."""

import copy

import pytest
import torch
from torch import nn

from ullsam import LlmConfig
from ullsam.accel import weights16 as half_module
from ullsam.accel.weights16 import HalfLinear, widen_in_use
from ullsam.llm import load_llm


@pytest.fixture
def pair():
    """The same 16-bit model, widened in use and converted to float32."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Embedding(30, 8), nn.LayerNorm(8), nn.Linear(8, 20), nn.GELU(), nn.Linear(20, 30, bias=False))
    layers = layers.half()
    layers[4].weight = nn.Parameter(torch.randn(30, 20).half())
    return widen_in_use(copy.deepcopy(layers)), layers.float()


@pytest.mark.parametrize("rows", [8192, 7])
def test_equals_the_model_in_float32(pair, monkeypatch, rows):
    monkeypatch.setattr(half_module, "ROWS", rows)  # 7: in parts
    widened, plain = pair
    ids = torch.arange(30)[None]
    torch.testing.assert_close(widened(ids), plain(ids), rtol=1e-5, atol=1e-6)
    assert widened(ids).dtype == torch.float32


def test_matrices_stay_in_16_bits_and_small_weights_do_not(pair):
    types = {name: p.dtype for name, p in pair[0].named_parameters()}
    assert {types[k] for k in ("0.weight", "2.weight", "4.weight")} == {torch.float16}
    assert types["1.weight"] == torch.float32


def test_gradient_passes_through(pair):
    widened, plain = pair
    gradients = []
    for model in (widened, plain):
        x = torch.ones(1, 8, requires_grad=True)
        model[4](model[2](x)).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_smollm2_stays_in_its_file_and_thinks_the_same():
    config = LlmConfig(name="smollm2", lora_rank=2)
    torch.manual_seed(0)
    half = load_llm(config, half=True)
    layer = half.lm.model.layers[3].mlp.up_proj
    assert isinstance(layer.base_layer, HalfLinear) and layer.base_layer.weight.dtype == torch.float16
    assert layer.lora_A["default"].weight.dtype == torch.float32
    plain = load_llm(config)
    with torch.no_grad():
        for module in half.lm.modules():
            if hasattr(module, "lora_B"):
                module.lora_B["default"].weight.normal_(std=0.02)
        adapters = {k: x for k, x in half.state_dict().items() if "lora_" in k}
        plain.load_state_dict(adapters, strict=False)
        before = layer.base_layer.weight.clone()
        plain.merge_lora()
        half.merge_lora()
        tokens = torch.randn(1, 8, 576, generator=torch.Generator().manual_seed(1)) * 0.1
        expected = plain.read(tokens).image
        assert (half.read(tokens).image - expected).abs().max() < 1e-4 * expected.abs().max()
    assert torch.equal(layer.base_layer.weight, before)  # shared with other processes: adapters stay beside it
