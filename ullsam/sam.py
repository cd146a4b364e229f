"""SAM from segment_anything's own classes: built of parts, in any size, and run on batches."""

from __future__ import annotations

from functools import partial, singledispatch

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling import Sam as SegmentAnything
from torch import Tensor, nn

from ullsam.accel.attention import FastAttention, FastBlock
from ullsam.config import SamConfig
from ullsam.types import ImageFeatures, Prompts, per_instance

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class SAM(SegmentAnything):
    """Segment Anything of built parts: an image encoder, a prompt encoder and a mask decoder, run on batches.

    A SAM with other parts derives from this class and overrides the method in which they differ.
    Letters: B images, I objects of one image, P prompt tokens, C SAM width, h w feature grid.
    """

    predictor_class: type | None = None  # the `Predictor` that suits this SAM; None: the plain one

    def __init__(self, image_encoder: nn.Module, prompt_encoder: nn.Module, mask_decoder: nn.Module):
        super().__init__(image_encoder, prompt_encoder, mask_decoder, list(PIXEL_MEAN), list(PIXEL_STD))

    def encode(self, pixels: Tensor, origin: tuple[int, int] = (0, 0)) -> ImageFeatures:
        """Features of normalised pixels (B, 3, s, s), see `encode_image`."""
        return encode_image(self.image_encoder, pixels, origin)

    def embed(self, prompts: Prompts, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Sparse (B*I, P, C) and dense (B*I, C, h, w) embeddings of prompts in pixels of the encoded image or window."""
        (left, top), (h, w) = features.origin, features.embedding.shape[2:]
        patch = self.prompt_encoder.input_image_size[0] // self.prompt_encoder.image_embedding_size[0]
        sparse, dense = encode_prompts(self.prompt_encoder, prompts.shifted(left * patch, top * patch))
        return sparse, dense[:, :, :h, :w]  # a window needs only its part of the constant no-mask embedding

    def decode(self, features: ImageFeatures, sparse: Tensor, dense: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Mask logits (B*I, 4, 4h, 4w) and estimated IoU (B*I, 4), see `decode_masks`.

        `prompts` are what `sparse` was made of, for decoders that look at the clicks themselves; SAM's own does not.
        """
        return decode_masks(self.mask_decoder, features, self.image_pe(features), sparse, dense)

    def image_pe(self, features: ImageFeatures) -> Tensor:
        """The position codes (1, C, h, w) of the encoded image or window."""
        (left, top), (h, w) = features.origin, features.embedding.shape[2:]
        return self.prompt_encoder.get_dense_pe()[:, :, top : top + h, left : left + w]


@singledispatch
def build_sam(config: SamConfig) -> SAM:
    """A SAM of the given size with random weights, made of segment_anything's classes.

    A room of the package that has settings of its own registers how they are built (`build_sam.register`).
    """
    return SAM(build_image_encoder(config), build_prompt_encoder(config), build_mask_decoder(config)).eval()


def build_image_encoder(c: SamConfig, normalise: bool = False) -> ImageEncoderViT:
    """SAM's image encoder with faster attention, same parameters; `normalise`: queries and keys, see `FastAttention`."""
    encoder = ImageEncoderViT(
        img_size=c.image_size,
        patch_size=c.patch_size,
        embed_dim=c.embed_dim,
        depth=c.depth,
        num_heads=c.num_heads,
        out_chans=c.out_chans,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=c.use_rel_pos,
        window_size=c.window_size,
        global_attn_indexes=c.global_attn_indexes,
    )
    for i, block in enumerate(encoder.blocks):
        attention = FastAttention(c.embed_dim, c.num_heads, c.use_rel_pos, block.window_size or c.grid, normalise)
        encoder.blocks[i] = FastBlock(block.norm1, attention, block.norm2, block.mlp, block.window_size)
    return encoder


def build_prompt_encoder(c: SamConfig) -> PromptEncoder:
    """SAM's prompt encoder."""
    return PromptEncoder(c.out_chans, (c.grid, c.grid), (c.image_size, c.image_size), c.mask_in_chans)


def build_mask_decoder(c: SamConfig, kind: type[MaskDecoder] = MaskDecoder, **options) -> MaskDecoder:
    """SAM's mask decoder, or one of a class that derives from it, with its own `options`."""
    transformer = TwoWayTransformer(depth=2, embedding_dim=c.out_chans, mlp_dim=c.decoder_mlp_dim, num_heads=8)
    width = c.iou_head_dim or c.out_chans
    return kind(transformer_dim=c.out_chans, transformer=transformer, iou_head_hidden_dim=width, **options)


def normalise(pixels: Tensor, preprocessing: str, valid_mask: Tensor | None = None) -> Tensor:
    """uint8 (B, S, S, 3) -> float (B, 3, S, S), by SAM's mean and deviation or to 0..1 as the official uLLSAM code.

    Args:
        pixels: images on the model's square.
        preprocessing: "sam" or "official".
        valid_mask: bool (B, S, S), False where there is padding, which for SAM is 0 after normalising (for the official code
            before it); None where there is none.
    """
    x = pixels.permute(0, 3, 1, 2).contiguous().float()  # (B, S, S, 3) -> (B, 3, S, S)
    if preprocessing == "official":
        return x / 255
    mean, std = (x.new_tensor(v).view(3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    x = (x - mean) / std
    return x if valid_mask is None else x * valid_mask[:, None]


def encode_image(encoder: ImageEncoderViT, pixels: Tensor, origin: tuple[int, int] = (0, 0)) -> ImageFeatures:
    """Runs the image encoder on a whole image or on a window of its canvas.

    Args:
        encoder: segment_anything's image encoder.
        pixels: normalised pixels (B, 3, s, s), s a multiple of the patch size and at most the model's S.
        origin: (x, y) of the window in patches; a smaller s with an origin sees the same position codes as that part
            of a whole image, which makes training on windows cheap (not with relative positions).

    Returns:
        Features of the window, embedding (B, C, s/16, s/16).
    """
    states = run_blocks(encoder, encoder.patch_embed(pixels), origin)
    return ImageFeatures(encoder.neck(states), states, origin)


def run_blocks(encoder: ImageEncoderViT, patches: Tensor, origin: tuple[int, int]) -> Tensor:
    """The transformer blocks on embedded patches (B, h, w, D) of a window at `origin`: states (B, D, h, w)."""
    (left, top), (h, w) = origin, patches.shape[1:3]
    x = patches + encoder.pos_embed[:, top : top + h, left : left + w]
    for block in encoder.blocks:
        x = block(x)
    return x.permute(0, 3, 1, 2)


def encode_prompts(encoder: PromptEncoder, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Sparse (B*I, P, C) and dense (B*I, C, h, w) embeddings of the prompts, by segment_anything's prompt encoder."""
    points = boxes = masks = None
    if prompts.points is not None:
        points = prompts.points.flatten(0, 1), prompts.labels.flatten(0, 1)  # (B, I, P, 2) -> (B*I, P, 2)
    if prompts.boxes is not None:
        boxes = prompts.boxes.flatten(0, 1)  # (B, I, 4) -> (B*I, 4)
    if prompts.masks is not None:
        masks = prompts.masks.flatten(0, 1)[:, None]  # (B, I, 4h, 4w) -> (B*I, 1, 4h, 4w)
    return encoder(points, boxes, masks)


def decode_masks(
    decoder: MaskDecoder, features: ImageFeatures, image_pe: Tensor, sparse: Tensor, dense: Tensor
) -> tuple[Tensor, Tensor]:
    """Mask logits of all prompts of all images in one pass; equal to segment_anything's decoder for one image.

    Args:
        decoder: segment_anything's mask decoder.
        features: of B images; image_pe: (1, C, h, w); sparse (B*I, P, C); dense (B*I, C, h, w).

    Returns:
        Logits (B*I, M, 4h, 4w) and estimated IoU (B*I, M) for the decoder's M = 4 mask tokens; the first is the single
        mask, the others SAM's three candidates for an ambiguous click.
    """
    states, masks, src = attend(decoder, features, image_pe, sparse, dense)
    return mask_logits(decoder, masks, decoder.output_upscaling(src)), decoder.iou_prediction_head(states)


def attend(decoder: MaskDecoder, features: ImageFeatures, image_pe: Tensor, sparse: Tensor, dense: Tensor):
    """The decoder's transformer: states of the IoU token (B*I, C) and the mask tokens (B*I, M, C), and the attended image
    (B*I, C, h, w); arguments as in `decode_masks`."""
    total, tokens_out = len(sparse), decoder.num_mask_tokens
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(total, -1, -1)
    tokens = torch.cat([output, sparse.to(output.dtype)], dim=1)  # (B*I, 1 + M + P, C)
    src = per_instance(features.embedding, total) + dense  # (B*I, C, h, w)
    src = src.contiguous(memory_format=torch.channels_last)  # the transformer reads it patch by patch
    states, flat = decoder.transformer(src, per_instance(image_pe, total), tokens)
    return states[:, 0], states[:, 1 : 1 + tokens_out], flat.transpose(1, 2).reshape(src.shape)


def mask_logits(decoder: MaskDecoder, masks: Tensor, upscaled: Tensor) -> Tensor:
    """Mask tokens (B*I, M, C) and the upscaled image (B*I, C/8, 4h, 4w) -> logits (B*I, M, 4h, 4w)."""
    heads = zip(decoder.output_hypernetworks_mlps, masks.unbind(1), strict=True)
    weights = torch.stack([mlp(token) for mlp, token in heads], dim=1)  # (B*I, M, C/8)
    return (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
