"""The tiny model's SAM: finer maps and click maps that reach the mask, a summary for the language model."""

from dataclasses import replace

import pytest
import torch

from ullsam import InputError, Prompts, build_sam
from ullsam.tiny import TinySamConfig
from ullsam.tiny.clicks import read_clicks

STEM = TinySamConfig(
    image_size=128,
    embed_dim=32,
    depth=2,
    num_heads=2,
    global_attn_indexes=(1,),
    window_size=4,
    use_rel_pos=False,
    out_chans=32,
    decoder_mlp_dim=64,
    mask_in_chans=8,
    stem=(8, 16, 24),
)


@torch.no_grad()
def test_stem_gives_finer_maps_that_reach_the_mask():
    sam = build_sam(STEM)
    features = sam.encode(torch.randn(2, 3, 128, 128))
    assert features.embedding.shape == (2, 32, 8, 8)
    assert [s.shape for s in features.skips] == [(2, 16, 32, 32), (2, 24, 16, 16)]
    prompts = Prompts(torch.rand(2, 3, 1, 2) * 128, torch.ones(2, 3, 1))
    parts, clicks = sam.embed(prompts, features), read_clicks(prompts, features.skips)
    logits, iou = sam.decode(features, *parts, prompts)
    assert torch.equal(sam.decode_fine(features, *parts, clicks)[0], logits)
    assert logits.shape == (6, 4, 32, 32) and iou.shape == (6, 4)
    changed = replace(features, skips=tuple(s * torch.rand_like(s) for s in features.skips))
    assert not torch.equal(sam.decode_fine(changed, *parts, clicks)[0], logits)
    elsewhere = clicks._replace(near=0 * clicks.near)
    assert not torch.equal(sam.decode_fine(features, *parts, elsewhere)[0], logits)
    moved = clicks._replace(offset=clicks.offset + 1, found=clicks.found + 1)
    assert torch.equal(sam.decode_fine(features, *parts, moved)[0], logits)  # nothing before training
    for layer in (sam.mask_decoder.anchor, sam.mask_decoder.offset_quarter, sam.mask_decoder.offset_eighth):
        torch.nn.init.normal_(layer.weight)
    trained = sam.decode_fine(features, *parts, clicks)[0]
    for part in ("offset", "found"):
        without = clicks._replace(**{part: getattr(clicks, part) + 1})
        assert not torch.equal(sam.decode_fine(features, *parts, without)[0], trained)


@torch.no_grad()
def test_the_summary_starts_as_nothing_and_is_one_vector_for_the_whole_image():
    plain, sam = build_sam(STEM), build_sam(replace(STEM, summary=True))
    new = sam.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert new and all(".summary." in key for key in new)
    pixels = torch.randn(2, 3, 128, 128)
    pixels[1] *= 5
    without, before = (s.encode(pixels) for s in (plain, sam))
    assert without.summary is None and torch.equal(without.described, before.described)
    torch.nn.init.normal_(sam.image_encoder.summary.mlp[-1].weight)
    after = sam.encode(pixels)
    assert torch.equal(after.embedding, before.embedding)  # the mask decoder's input has nothing of it
    added = after.described - before.described  # (2, 32, 8, 8)
    assert (added - added.mean((2, 3), keepdim=True)).abs().max() < 1e-5
    assert (added[0] - added[1]).abs().max() > 0.1  # another texture, another summary


@torch.no_grad()
def test_without_finer_maps_the_decoder_is_sams_own():
    sam = build_sam(STEM)
    features = replace(sam.encode(torch.randn(1, 3, 128, 128)), skips=())
    prompts = Prompts(torch.rand(1, 2, 1, 2) * 128, torch.ones(1, 2, 1))
    sparse, dense = sam.embed(prompts, features)
    expected, _ = sam.mask_decoder.predict_masks(features.embedding, sam.image_pe(features), sparse, dense)
    torch.testing.assert_close(sam.decode(features, sparse, dense, prompts)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_stem_needs_its_patch_size():
    with pytest.raises(InputError, match="patches of 16 px, not 8"):
        build_sam(replace(STEM, patch_size=8))
