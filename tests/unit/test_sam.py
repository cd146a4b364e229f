"""Our SAM against segment_anything's own code."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything.modeling.image_encoder import Attention, Block

from ullsam import ULLSAM, InputError, Prompts, build_sam, decode_masks, encode_image, encode_prompts, preset
from ullsam.accel.attention import FastBlock
from ullsam.config import SamConfig
from ullsam.sam import FastAttention, normalise
from ullsam.tiny.modules import click_maps, click_offsets, features_at_clicks, per_instance, read_clicks

DEBUG = preset("debug").sam
STEM = SamConfig(
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


@pytest.fixture
def sam():
    """A small SAM whose relative positions are not zero."""
    model = build_sam(DEBUG)
    for block in model.image_encoder.blocks:
        torch.nn.init.normal_(block.attn.rel_pos_h)
        torch.nn.init.normal_(block.attn.rel_pos_w)
    return model


def image(side=64):
    return torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8)


def record(pixels, **prompts):
    side = pixels.shape[1]
    return {"image": pixels[0].permute(2, 0, 1).float(), "original_size": (side, side), **prompts}


POINTS, LABELS = torch.tensor([[[10.0, 20], [40, 50]], [[3, 4], [60, 2]]]), torch.tensor([[1.0, 0], [1, 1]])
BOXES = torch.tensor([[5.0, 6, 30, 40], [20, 20, 63, 60]])
MASKS = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(3))
CASES = {
    "points": (dict(point_coords=POINTS, point_labels=LABELS), Prompts(POINTS[None], LABELS[None])),
    "boxes": (dict(boxes=BOXES), Prompts(boxes=BOXES[None])),
    "points and boxes": (
        dict(point_coords=POINTS, point_labels=LABELS, boxes=BOXES),
        Prompts(POINTS[None], LABELS[None], BOXES[None]),
    ),
    "masks": (dict(boxes=BOXES, mask_inputs=MASKS), Prompts(boxes=BOXES[None], masks=MASKS[None, :, 0])),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("multimask", [False, True])
@torch.no_grad()
def test_equal_to_the_bit_to_segment_anything(sam, case, multimask):
    theirs_in, prompts = CASES[case]
    pixels = image()
    theirs = sam([record(pixels, **theirs_in)], multimask_output=multimask)[0]
    features = encode_image(sam.image_encoder, normalise(pixels, "sam"))
    sparse, dense = encode_prompts(sam.prompt_encoder, prompts)
    logits, iou = decode_masks(sam.mask_decoder, features, sam.prompt_encoder.get_dense_pe(), sparse, dense)
    kinds = slice(1, None) if multimask else slice(0, 1)
    assert torch.equal(logits[:, kinds], theirs["low_res_logits"])
    assert torch.equal(iou[:, kinds], theirs["iou_predictions"])


@torch.no_grad()
def test_batch_of_images_equals_one_at_a_time(sam):
    pixels = torch.cat([image(), image(), image()])
    points, labels = torch.rand(3, 2, 4, 2) * 64, torch.randint(0, 2, (3, 2, 4)).float()
    features = encode_image(sam.image_encoder, normalise(pixels, "sam"))
    pe = sam.prompt_encoder.get_dense_pe()
    together = decode_masks(sam.mask_decoder, features, pe, *encode_prompts(sam.prompt_encoder, Prompts(points, labels)))[0]
    for i in range(3):
        one = encode_image(sam.image_encoder, normalise(pixels[i : i + 1], "sam"))
        prompts = Prompts(points[i : i + 1], labels[i : i + 1])
        alone = decode_masks(sam.mask_decoder, one, pe, *encode_prompts(sam.prompt_encoder, prompts))[0]
        torch.testing.assert_close(together[2 * i : 2 * i + 2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("shape", [(4, 4), (3, 5)])
def test_fast_attention_is_the_same_attention(rel_pos, shape):
    attention = FastAttention(32, 4, rel_pos, max(shape))
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, *shape, 32)
    torch.testing.assert_close(attention(x), Attention.forward(attention, x), rtol=1e-4, atol=1e-5)


def theirs_and_ours(window, shape):
    """segment_anything's block and ours of the same weights, and an input whose last windows are padded."""
    theirs = Block(32, 4, use_rel_pos=True, window_size=window, input_size=(max(shape), max(shape)))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    attention = FastAttention(32, 4, True, window or max(shape))
    ours = FastBlock(theirs.norm1, attention, theirs.norm2, theirs.mlp, window)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours, torch.randn(2, *shape, 32)


@pytest.mark.parametrize("window, shape", [(0, (4, 5)), (2, (4, 4)), (3, (4, 5)), (4, (3, 9))])
def test_fast_block_is_the_same_block(window, shape, monkeypatch):
    theirs, ours, x = theirs_and_ours(window, shape)
    expected = theirs(x)
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr("ullsam.accel.attention.MLP_AT_ONCE", 1000)  # several parts
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)


def test_fast_block_has_the_same_gradients():
    theirs, ours, x = theirs_and_ours(3, (4, 5))
    weight = torch.randn(2, 4, 5, 32)
    grads = [torch.autograd.grad((block(x) * weight).sum(), list(block.parameters())) for block in (theirs, ours)]
    names = ([name for name, _ in block.named_parameters()] for block in (theirs, ours))
    theirs_by_name, ours_by_name = (dict(zip(n, g, strict=True)) for n, g in zip(names, grads, strict=True))
    for name, grad in theirs_by_name.items():  # the relative positions of padding count too
        torch.testing.assert_close(ours_by_name[name], grad, rtol=1e-3, atol=1e-3 * float(grad.abs().max()))


@torch.no_grad()
def test_normalised_attention_stays_wide_whatever_the_weights():
    x, near = torch.randn(1, 4, 4, 32), 0.01 * torch.randn(16, 1, 1, 32)
    jumps = []
    for held in (False, True):
        attention = FastAttention(32, 4, False, 4, held)
        attention.qkv.weight[:64] *= 1000  # queries and keys
        before = attention(x)
        jumps.append(float((attention(x + near) - before).abs().max() / before.abs().max()))
    assert jumps[1] < 0.2 < jumps[0]  # a small change moves attention to single places by a jump


class BlankPatches(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(1, x.shape[2] // 16, x.shape[3] // 16, 32)


@torch.no_grad()
def test_a_window_sees_the_position_codes_of_its_place():
    encoder = build_sam(STEM).image_encoder
    encoder.blocks = torch.nn.ModuleList()  # without attention and neck each patch stands for itself
    encoder.neck = torch.nn.Identity()
    encoder.patch_embed = BlankPatches()
    whole = encode_image(encoder, torch.zeros(1, 3, 128, 128)).embedding
    part = encode_image(encoder, torch.zeros(1, 3, 64, 64), origin=(2, 4)).embedding
    assert torch.equal(part, whole[:, :, 4:8, 2:6])


@torch.no_grad()
def test_stem_gives_finer_maps_that_reach_the_mask():
    sam = build_sam(STEM)
    features = encode_image(sam.image_encoder, torch.randn(2, 3, 128, 128))
    assert features.embedding.shape == (2, 32, 8, 8)
    assert [s.shape for s in features.skips] == [(2, 16, 32, 32), (2, 24, 16, 16)]
    prompts = Prompts(torch.rand(2, 3, 1, 2) * 128, torch.ones(2, 3, 1))
    parts = encode_prompts(sam.prompt_encoder, prompts)
    pe, clicks = sam.prompt_encoder.get_dense_pe(), read_clicks(prompts, features.skips)
    logits, iou = decode_masks(sam.mask_decoder, features, pe, *parts, clicks)
    assert logits.shape == (6, 4, 32, 32) and iou.shape == (6, 4)
    changed = features._replace(skips=tuple(s * torch.rand_like(s) for s in features.skips))
    assert not torch.equal(decode_masks(sam.mask_decoder, changed, pe, *parts, clicks)[0], logits)
    elsewhere = clicks._replace(near=0 * clicks.near)
    assert not torch.equal(decode_masks(sam.mask_decoder, features, pe, *parts, elsewhere)[0], logits)
    moved = clicks._replace(offset=clicks.offset + 1, found=clicks.found + 1)
    assert torch.equal(decode_masks(sam.mask_decoder, features, pe, *parts, moved)[0], logits)  # nothing before training
    for layer in (sam.mask_decoder.anchor, sam.mask_decoder.offset_quarter, sam.mask_decoder.offset_eighth):
        torch.nn.init.normal_(layer.weight)
    trained = decode_masks(sam.mask_decoder, features, pe, *parts, clicks)[0]
    for part in ("offset", "found"):
        without = clicks._replace(**{part: getattr(clicks, part) + 1})
        assert not torch.equal(decode_masks(sam.mask_decoder, features, pe, *parts, without)[0], trained)


@torch.no_grad()
def test_the_summary_starts_as_nothing_and_is_one_vector_for_the_whole_image():
    plain, sam = build_sam(STEM), build_sam(replace(STEM, summary=True))
    new = sam.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert new and all(".summary." in key for key in new)
    pixels = torch.randn(2, 3, 128, 128)
    pixels[1] *= 5
    without, before = (encode_image(s.image_encoder, pixels) for s in (plain, sam))
    assert without.summary is None and torch.equal(without.described, before.described)
    torch.nn.init.normal_(sam.image_encoder.summary.mlp[-1].weight)
    after = encode_image(sam.image_encoder, pixels)
    assert torch.equal(after.embedding, before.embedding)  # the mask decoder's input has nothing of it
    added = after.described - before.described  # (2, 32, 8, 8)
    assert (added - added.mean((2, 3), keepdim=True)).abs().max() < 1e-5
    assert (added[0] - added[1]).abs().max() > 0.1  # another texture, another summary


def test_click_maps_by_hand():
    points = torch.tensor([[[[1.5, 1.5], [13.5, 5.5], [0.0, 0.0]]]])  # at the centres of two places, and one unused
    maps = click_maps(Prompts(points, torch.tensor([[[1.0, 0.0, -1.0]]])), (4, 4))
    assert maps.shape == (1, 7, 4, 4) and maps[0, 6].eq(0).all()
    assert maps[0, :3, 0, 0].tolist() == [1, 1, 1] and maps[0, 3:6, 1, 3].tolist() == [1, 1, 1]
    assert maps[0, :3, 0, 1].tolist() == pytest.approx(np.exp([-1, -0.25, -0.0625]).tolist())  # 4 pixels away
    boxes = click_maps(Prompts(boxes=torch.tensor([[[4.0, 0.0, 12.0, 4.0]]])), (4, 4))
    assert boxes[0, 6].tolist() == [[0, 1, 1, 0]] + [[0] * 4] * 3 and boxes[0, :6].eq(0).all()


def test_click_offsets_point_away_from_the_middle_of_the_inside_points():
    points = torch.tensor([[[[0.5, 5.5], [2.5, 5.5], [12.0, 12.0]]]])  # the middle of the first two: (2, 6) in pixel edges
    offsets = click_offsets(Prompts(points, torch.tensor([[[1.0, 1.0, 0.0]]])), (4, 4))
    assert offsets.shape == (1, 2, 4, 4) and offsets[0, 0, 0, 0] == 0 and offsets[0, 1, 1, 0] == 0
    assert offsets[0, :, 3, 2].tolist() == pytest.approx(np.tanh([8 / 64, 8 / 64]).tolist())
    box = click_offsets(Prompts(boxes=torch.tensor([[[0.0, 4.0, 4.0, 8.0]]])), (4, 4))
    torch.testing.assert_close(box, offsets)


def test_features_at_clicks_are_read_where_the_clicks_are():
    quarter, eighth = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 2, 2)  # of an image of 16 px
    quarter[1, 0, 1, 2], eighth[1, 0, 0, 1] = 3.0, 5.0  # second image: x 8 to 12, y 4 to 8; x 8 to 16, y 0 to 8
    points = torch.tensor([[[9.5, 5.5], [1.5, 13.5]], [[11.5, 3.5], [0.0, 0.0]]])  # centres in quarter, then in eighth
    labels = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    prompts = Prompts(points.expand(2, 2, 2, 2), labels.expand(2, 2, 2))
    found = features_at_clicks(prompts, (quarter, eighth))  # inside quarter, inside eighth, outside quarter, outside eighth
    assert found.shape == (4, 4) and found[:2].eq(0).all()
    assert found[2, 0] == 3 and found[2, 2:].eq(0).all() and found[3, :2].eq(0).all() and found[3, 3] == 5
    boxes = Prompts(boxes=torch.tensor([[[8.0, 4.0, 12.0, 8.0]]] * 2))
    assert features_at_clicks(boxes, (quarter, eighth))[1].tolist() == [3.0, found[2, 1].item(), 0.0, 0.0]
    nothing = read_clicks(Prompts(masks=torch.zeros(2, 1, 4, 4)), (quarter, eighth))
    assert nothing.found.eq(0).all() and nothing.near.eq(0).all()


def test_per_instance_repeats_image_by_image():
    x = torch.arange(2.0)[:, None]
    assert per_instance(x, 4)[:, 0].tolist() == [0, 0, 1, 1]
    assert per_instance(x[:1], 3).data_ptr() == x.data_ptr()


def test_normalise_both_ways():
    white = torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    assert torch.equal(normalise(white, "official"), torch.ones(1, 3, 2, 2))
    assert normalise(white, "sam")[0, :, 0, 0].tolist() == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-3)


@pytest.mark.parametrize("height, width", [(64, 40), (23, 64), (64, 64)])
def test_an_image_that_is_not_square_is_padded_as_sam_pads_it(height, width):
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    model = ULLSAM.from_preset("debug", llm=None, vlsa="none")
    mine, (square,) = model.preprocess([picture])
    theirs = model.sam.preprocess(torch.from_numpy(picture).permute(2, 0, 1))  # (H, W, 3) -> (3, H, W)
    torch.testing.assert_close(mine[0], theirs, rtol=0, atol=1e-6)
    assert square.valid_mask().sum() == height * width


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(InputError, match="patch of 16 px does not fit an image of 100 px"):
        build_sam(SamConfig(image_size=100))
