"""Pixel shuffle, projection, VLSA variants and the checks for a student's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import ullsam
from ullsam import VLSA, InputError, VlsaShape, build_vlsa, check_vlsa, pixel_shuffle, pixel_unshuffle, register_vlsa
from ullsam.vlsa import _REGISTERED, VisionProjection, vlsa_names

SHAPE = VlsaShape(llm_dim=48, sam_dim=32, grid=(8, 8), ratio=0.5)


@pytest.fixture(autouse=True)
def _own_names():
    yield
    _REGISTERED.clear()


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1.0, 0.5, 0.25]))
def test_pixel_shuffle_has_an_exact_inverse(b, h, w, c, ratio):
    k = round(1 / ratio)
    x = torch.randn(b, h * k, w * k, c)
    y = pixel_shuffle(x, ratio)
    assert y.shape == (b, h, w, c * k * k)
    assert torch.equal(pixel_unshuffle(y, ratio), x)


def test_pixel_shuffle_order_is_dy_dx_channel():
    x = torch.arange(2 * 2 * 3.0).view(1, 2, 2, 3)
    assert pixel_shuffle(x).flatten().tolist() == list(range(12))
    assert torch.equal(
        pixel_shuffle(x),
        F.pixel_unshuffle(x.permute(0, 3, 1, 2), 2).view(1, 3, 4, 1, 1).permute(0, 3, 4, 2, 1).reshape(1, 1, 1, 12),
    )


def test_odd_grids_are_named():
    with pytest.raises(InputError, match="3 x 4 grid"):
        pixel_shuffle(torch.zeros(1, 3, 4, 2))


def test_projection_shapes_and_size():
    projection = VisionProjection(256, 2048)
    assert sum(p.numel() for p in projection.parameters()) == 6_297_600  # the official mlp1
    assert VisionProjection(32, 48)(torch.randn(2, 32, 8, 8)).shape == (2, 16, 48)


def test_paper_variant_size_matches_the_official_one():
    module = build_vlsa("paper", VlsaShape(2048, 256, (64, 64), 0.5))
    assert sum(p.numel() for p in module.parameters()) == 3_151_872 + 2  # mlp2, alpha and beta


def test_paper_variant_by_hand():
    module, hidden = build_vlsa("paper", SHAPE), torch.randn(2, 16, 48)
    norm, first, act, second = module.mlp
    x = second(act(first(norm(hidden)))).view(2, 4, 4, 2, 2, 32).transpose(2, 3).reshape(2, 8, 8, 32)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(module(hidden), 0.1 * x.permute(0, 3, 1, 2))
    assert module.scale.item() == pytest.approx(0.1) and module.shift.item() == 0


def test_paper_variant_options():
    plain = build_vlsa("paper", SHAPE, learned_scale_shift=False)
    assert plain.scale is None and plain(torch.randn(1, 16, 48)).std().item() == pytest.approx(1, abs=0.05)
    dropped = build_vlsa("paper", SHAPE, dropout=0.2).train()
    hidden = torch.randn(1, 16, 48)
    assert not torch.equal(dropped(hidden), dropped(hidden))
    assert torch.equal(dropped.eval()(hidden), dropped(hidden))


def test_residual_starts_as_sam():
    module, sparse, dense = build_vlsa("residual", SHAPE), torch.randn(3, 2, 32), torch.randn(3, 32, 8, 8)
    assert torch.equal(module.inject(module(torch.randn(3, 16, 48)), sparse, dense)[1], dense)


@pytest.mark.parametrize("name", [n for n in vlsa_names() if n != "none"])
def test_built_in_variants_pass_their_check(name):
    report = check_vlsa(name)
    assert report["variant"] == name and report["parameters"] > 0


def variant(**methods):
    """Registers a variant that is right but for the given methods."""

    class Mine(VLSA):
        def __init__(self, shape):
            super().__init__(shape)
            self.proj = nn.Linear(shape.llm_dim, shape.sam_dim)

        def forward(self, hidden):
            return self.proj(hidden.mean(1))[..., None, None].expand(-1, -1, *self.shape.grid)

    for name, method in methods.items():
        setattr(Mine, name, method)
    return register_vlsa("mine")(Mine)


def test_a_students_variant():
    variant()
    assert check_vlsa("mine")["knowledge"] == (32, 8, 8)
    variant(inject=lambda self, k, s, d: (s, d + k))  # running the cell again replaces it
    assert check_vlsa("mine") and "mine" in ullsam.vlsa_names()


@pytest.mark.parametrize(
    ("methods", "mistake"),
    [
        (dict(forward=lambda self, h: self.proj(h.mean(1))), r"1 prompts inject returns dense \(1, 32\), expected"),
        (dict(forward=lambda self, h: None), "forward returns a NoneType"),
        (dict(forward=lambda self, h: self.proj(h.mean((0, 1)))), "forward turns 2 images into 32"),
        (dict(forward=lambda self, h: self.proj(h[..., :7])), r"forward fails on tensors of shapes \(2, 16, 48\): mat1"),
        (dict(inject=lambda self, k, s, d: (s, d @ k.width)), "inject fails on tensors of shapes .* no attribute 'width'"),
        (dict(inject=lambda self, k, s, d: d), "inject must return two tensors"),
        (dict(inject=lambda self, k, s, d: (s[:1], d + k)), "for 5 prompts inject returns sparse"),
        (dict(inject=lambda self, k, s, d: (s, d + k.log() * 0 + k / 0)), "NaN or infinite"),
        (dict(inject=lambda self, k, s, d: (s, d + k.detach())), "no gradient reaches proj.weight"),
    ],
)
def test_check_names_the_mistake(methods, mistake):
    variant(**methods)
    with pytest.raises(InputError, match=mistake):
        check_vlsa("mine")


def test_names_clash_or_are_unknown():
    for taken in ("paper", "none"):
        with pytest.raises(InputError, match="built-in"):
            register_vlsa(taken)(VLSA)
    with pytest.raises(InputError, match="must derive from ullsam.VLSA"):
        register_vlsa("mine")(nn.Linear)
    with pytest.raises(InputError, match="no VLSA variant 'papper'; known: none, paper"):
        build_vlsa("papper", SHAPE)
    with pytest.raises(InputError, match="15 image tokens do not form a square"):
        build_vlsa("paper", SHAPE)(torch.randn(1, 15, 48))
