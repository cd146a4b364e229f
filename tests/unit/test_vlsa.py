"""Pixel shuffle, projection, running means, the paper's VLSA and the registry."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ullsam import VLSA, InputError, VlsaShape, build_vlsa, pixel_shuffle, pixel_unshuffle, register_vlsa
from ullsam.types import LanguageStates
from ullsam.vlsa import _REGISTERED, CentredStates, RunningMean, TokenBalance, VisionProjection

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


# ---------------------------------------------------------------- what all images have in common


def test_running_mean_weighs_the_first_steps_alike_and_later_ones_by_its_rate():
    module, batches = RunningMean(3, rate=0.2).train(), torch.randn(9, 2, 4, 3)  # 1 / 0.2 = 5 equal steps
    for i, batch in enumerate(batches[:5], 1):
        out = module(batch)
        torch.testing.assert_close(module.mean, batches[:i].mean((0, 1, 2)))
        torch.testing.assert_close(out, batch - module.mean)
    expected = module.mean.clone()
    for batch in batches[5:]:
        module(batch)
        expected = 0.8 * expected + 0.2 * batch.mean((0, 1))
    torch.testing.assert_close(module.mean, expected)
    kept = module.mean.clone()
    module.eval()(torch.ones(1, 3))
    assert torch.equal(module.mean, kept)


def test_running_mean_is_0_before_training_and_saved_with_the_model():
    module, x = RunningMean(3), torch.randn(2, 5, 3)
    assert torch.equal(module.eval()(x), x) and sorted(module.state_dict()) == ["mean", "steps"]
    module.train()(x)
    again = RunningMean(3).eval()
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(x), module.eval()(x)) and not torch.equal(again(x), x)


def test_running_mean_lets_gradients_of_each_state_through():
    module, x = RunningMean(3).train(), torch.randn(2, 5, 3, requires_grad=True)
    module(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))  # the mean is no function of x


def tokens_of(images, constant=20.0):
    """Tokens (B, N, D) as they come from a projection: a long constant, a little of each image, less of each position."""
    drawn = torch.Generator().manual_seed(images)
    image, position = torch.randn(images, 1, 64, generator=drawn), torch.randn(images, 16, 64, generator=drawn)
    return constant + 0.5 * image + 0.1 * position


def test_token_balance_gives_images_and_positions_half_the_power_each_at_a_words_length():
    balance = TokenBalance(64, 3.2).train()
    for _ in range(60):
        balance(tokens_of(64))
    out = balance.eval()(tokens_of(64))
    image = out.mean(1, keepdim=True)
    between_images, between_positions = (image.square().sum(-1).mean(), (out - image).square().sum(-1).mean())
    assert out.square().sum(-1).mean().sqrt().item() == pytest.approx(3.2, rel=0.01)
    assert between_images.item() == pytest.approx(3.2**2 / 2, rel=0.02)
    assert between_positions.item() == pytest.approx(3.2**2 / 2, rel=0.02)
    assert image.mean(0).norm() < 0.01 * image.norm(dim=-1).mean()  # the constant is gone
    assert tokens_of(64).norm(dim=-1).mean() > 100


def test_token_balance_follows_its_buffers_alone_after_training():
    balance, x = TokenBalance(64, 3.2).train(), tokens_of(4)
    balance(x)
    balance.eval()
    whole = balance(x)
    assert set(balance.state_dict()) == {"power", "common.mean", "common.steps"}
    torch.testing.assert_close(balance(x[1:2]), whole[1:2])  # one image alone
    again = TokenBalance(64, 3.2).eval()
    again.load_state_dict(balance.state_dict())
    assert torch.equal(again(x), whole)


def test_projection_balances_where_a_length_is_given():
    assert isinstance(VisionProjection(32, 48).balance, nn.Identity)
    projection = VisionProjection(32, 48, length=3.2).train()
    for _ in range(3):
        out = projection(torch.randn(8, 32, 8, 8))
    assert out.shape == (8, 16, 48) and out.norm(dim=-1).mean().item() == pytest.approx(3.2, rel=0.2)


def described(lengths, layers=(), dim=6):
    """States of images with so many words' tokens each, far from 0, with zeros as padding."""
    valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]

    def one(constant):
        words = (constant + 1 + torch.randn(len(lengths), max(lengths), dim)) * valid[..., None]
        return LanguageStates(constant + torch.randn(len(lengths), 9, dim), words, valid, ("x",) * len(lengths))

    return replace(one(5.0), layers={n: one(10.0 * n) for n in layers})


def test_centred_states_lose_a_mean_of_their_own_at_images_words_and_layers():
    module = CentredStates(6, (1, 2)).train()
    states = described([4, 4], (1, 2))
    out = module(states)
    for x in (out, *out.layers.values()):
        for part in (x.image, x.words):
            torch.testing.assert_close(part.mean((0, 1)), torch.zeros(6), atol=1e-5, rtol=0)
    assert sorted(module.means) == ["image", "image1", "image2", "words", "words1", "words2"]
    torch.testing.assert_close(module.means["words2"].mean, states.layers[2].words.mean((0, 1)))
    assert out.texts == states.texts and out.valid is states.valid
    before = CentredStates(6, (1, 2)).eval()(states)
    assert torch.equal(before.layers[1].words, states.layers[1].words)  # nothing was learnt yet


def test_padding_counts_in_no_mean():
    module, states = CentredStates(6).train(), described([1, 4])
    module(states)
    torch.testing.assert_close(module.means["words"].mean, states.words[states.valid].mean(0))


def test_states_without_words_are_centred_too():
    module, states = CentredStates(6).train(), LanguageStates(torch.randn(2, 9, 6))
    assert module(states).words is None and module.means["words"].steps == 0 and module.means["image"].steps == 1


# ---------------------------------------------------------------- the registry


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


def test_forward_gets_states_or_the_tensor_at_the_image_tokens():
    class Of(VLSA):
        def forward(self, states):
            return states

    class OfTensor(VLSA):
        def forward(self, hidden):
            return hidden

    states = LanguageStates(torch.randn(1, 16, 48), texts=("nucleus",))
    assert Of(SHAPE)(states) is states and OfTensor(SHAPE)(states) is states.image
    assert OfTensor(SHAPE)(states.image) is states.image and Of(SHAPE)(states.image).image is states.image
