"""Our SAM against segment_anything's own code."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ullsam import ULLSAM, InputError, Prompts, build_sam, decode_masks, encode_image, encode_prompts, preset
from ullsam.config import SamConfig
from ullsam.sam import normalise, per_instance

DEBUG = preset("debug").sam
WINDOWED = replace(DEBUG, image_size=128, use_rel_pos=False)


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
    candidates = slice(1, None) if multimask else slice(0, 1)
    assert torch.equal(logits[:, candidates], theirs["low_res_logits"])
    assert torch.equal(iou[:, candidates], theirs["iou_predictions"])


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


class BlankPatches(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(1, x.shape[2] // 16, x.shape[3] // 16, 32)


@torch.no_grad()
def test_a_window_sees_the_position_codes_of_its_place():
    encoder = build_sam(WINDOWED).image_encoder
    encoder.blocks = torch.nn.ModuleList()  # without attention and neck each patch stands for itself
    encoder.neck = torch.nn.Identity()
    encoder.patch_embed = BlankPatches()
    whole = encode_image(encoder, torch.zeros(1, 3, 128, 128)).embedding
    part = encode_image(encoder, torch.zeros(1, 3, 64, 64), origin=(2, 4)).embedding
    assert torch.equal(part, whole[:, :, 4:8, 2:6])


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
    with pytest.raises(InputError, match="image_size is 100; give a multiple of 16"):
        SamConfig(image_size=100)
