"""SAM from segment_anything's own classes: build it in any size, run it on batches."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn
from torch.nn import functional as F

from ullsam.accel.attention import FastBlock, from_windows, quick_linear, relative_attention, to_windows
from ullsam.config import SamConfig
from ullsam.errors import InputError
from ullsam.tiny.modules import Clicks, ConvStem, FineMaskDecoder, FinePath, Summary, instance_norm, per_instance

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class ImageFeatures(NamedTuple):
    """What the image encoder says of B images: embedding (B, C, h, w), and with a convolutional stem more."""

    embedding: Tensor
    skips: tuple[Tensor, ...] = ()  # stride 4 (B, b, 4h, 4w) and stride 8 (B, c, 2h, 2w), see fine.py
    summary: Tensor | None = None  # (B, C, 1, 1), what kind of image it is, for the language model; see fine.Summary
    states: Tensor | None = None  # (B, D, h, w), what the last transformer block leaves

    @property
    def described(self) -> Tensor:
        """What the language model is shown, (B, C, h, w): the embedding and at every place the summary."""
        return self.embedding if self.summary is None else self.embedding + self.summary

    def float(self) -> ImageFeatures:
        """The same in float32."""
        summary, states = (None if x is None else x.float() for x in (self.summary, self.states))
        return ImageFeatures(self.embedding.float(), tuple(x.float() for x in self.skips), summary, states)


class Prompts(NamedTuple):
    """Prompts of I objects in each of B images, in pixels (x, y) of the model's square image.

    points (B, I, P, 2) float with labels (B, I, P): 1 inside, 0 outside, -1 unused; boxes (B, I, 4) as x0, y0, x1, y1;
    masks (B, I, 4h, 4w) logits. Each may be None, not all.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None


class FastAttention(Attention):
    """SAM's attention on PyTorch's fused kernel: same parameters, same result up to rounding.

    With `normalise` queries and keys of each head are normalised first, so that no weight can make attention look at one
    place only. Source: "Scaling vision transformers to 22 billion parameters" (Dehghani et al. 2023).
    """

    def __init__(self, dim: int, heads: int, use_rel_pos: bool, side: int, normalise: bool = False):
        super().__init__(dim, heads, True, use_rel_pos, input_size=(side, side))
        self.q_norm, self.k_norm = (nn.LayerNorm(dim // heads) if normalise else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, window: int = 0) -> Tensor:
        h, w = x.shape[1:3]
        side, bias = (window, window) if window else (h, w), self.qkv.bias  # padding is zero, its products are the bias
        pairs = zip(quick_linear(self.qkv, x).chunk(3, -1), bias.chunk(3), strict=True)  # each (b, h, w, heads*d)
        q, k, v = (to_windows(y, side, self.num_heads, padding) for y, padding in pairs)  # (b*windows, heads, n, d)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.use_rel_pos:
            x = relative_attention(q, k, v, *self._relative_terms(q, *side))
        else:
            x = F.scaled_dot_product_attention(q, k, v)
        return quick_linear(self.proj, from_windows(x, side, h, w))  # (b, h, w, heads*d)

    def _relative_terms(self, q: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
        """What each query adds for each row (b, heads, h*w, h) and each column (b, heads, h*w, w) of the grid."""
        grid = q.unflatten(2, (h, w))  # (b, heads, h, w, d)
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, get_rel_pos(h, h, self.rel_pos_h).to(q.dtype))
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, get_rel_pos(w, w, self.rel_pos_w).to(q.dtype))
        return rows.flatten(2, 3), columns.flatten(2, 3)


def build_sam(config: SamConfig) -> Sam:
    """A SAM of the given size with random weights, made of segment_anything's classes."""
    if config.image_size % config.patch_size or config.stem and config.patch_size != 16:
        raise InputError(f"A patch of {config.patch_size} px does not fit an image of {config.image_size} px; use 16.")
    sam = Sam(_image_encoder(config), _prompt_encoder(config), _mask_decoder(config), list(PIXEL_MEAN), list(PIXEL_STD))
    return sam.eval()


def _image_encoder(c: SamConfig) -> ImageEncoderViT:
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
        attention = FastAttention(c.embed_dim, c.num_heads, c.use_rel_pos, block.window_size or c.grid, c.qk_norm)
        encoder.blocks[i] = FastBlock(block.norm1, attention, block.norm2, block.mlp, block.window_size)
    if c.stem:
        encoder.patch_embed = ConvStem(c.stem, c.embed_dim)
        encoder.neck.append(instance_norm(c.out_chans, 0.3))
        encoder.summary = Summary(c.stem[1:], c.out_chans) if c.summary else None
        encoder.fine_path = FinePath(c.stem[1:], c.out_chans)
    _start_small(encoder, c.depth)
    return encoder


@torch.no_grad()
def _start_small(encoder: ImageEncoderViT, depth: int) -> None:
    """GPT-2's initialisation: no biases, and residual branches that add little at first."""
    nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
    for block in encoder.blocks:
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.lin1, block.mlp.lin2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        for last in (block.attn.proj, block.mlp.lin2):
            last.weight.mul_((2 * depth) ** -0.5)


def _prompt_encoder(c: SamConfig) -> PromptEncoder:
    encoder = PromptEncoder(
        embed_dim=c.out_chans,
        image_embedding_size=(c.grid, c.grid),
        input_image_size=(c.image_size, c.image_size),
        mask_in_chans=c.mask_in_chans,
    )
    encoder.pe_layer.positional_encoding_gaussian_matrix *= c.position_scale
    with torch.no_grad():  # places count for more than kinds at first, see instance_norm
        encoder.no_mask_embed.weight.mul_(0.1)
        for embedding in encoder.point_embeddings:
            embedding.weight.mul_(0.3)
    return encoder


def _mask_decoder(c: SamConfig) -> MaskDecoder:
    transformer = TwoWayTransformer(depth=2, embedding_dim=c.out_chans, mlp_dim=c.decoder_mlp_dim, num_heads=8)
    _match_places(transformer)
    settings = dict(transformer_dim=c.out_chans, transformer=transformer, iou_head_hidden_dim=c.iou_head_dim or c.out_chans)
    return FineMaskDecoder(c.stem[1:], **settings) if c.stem else MaskDecoder(**settings)


@torch.no_grad()
def _match_places(transformer: TwoWayTransformer, gain: float = 3.0) -> None:
    """Starts cross-attention with equal query and key maps: a point attends to its own place from the first step.

    With independent random maps a decoder trained from scratch spends hundreds of steps on finding out where a point is.
    """
    layers = [m for layer in transformer.layers for m in (layer.cross_attn_token_to_image, layer.cross_attn_image_to_token)]
    for attention in (*layers, transformer.final_attn_token_to_image):
        attention.q_proj.weight.mul_(gain)
        attention.k_proj.weight.copy_(attention.q_proj.weight)


def normalise(pixels: Tensor, preprocessing: str, valid_mask: Tensor | None = None) -> Tensor:
    """uint8 (B, S, S, 3) -> float (B, 3, S, S), by SAM's mean and deviation or to 0..1 as the official uLLSAM code.

    Args:
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
        encoder: segment_anything's image encoder, with its own patch embedding or a `ConvStem`.
        pixels: normalised pixels (B, 3, s, s), s a multiple of the patch size and at most the model's S.
        origin: (x, y) of the window in patches; a smaller s with an origin sees the same position codes as that part
            of a whole image, which makes training on windows cheap (not with relative positions).

    Returns:
        Features of the window, embedding (B, C, s/16, s/16).
    """
    x, skips = encoder.patch_embed(pixels), ()
    if isinstance(x, tuple):
        x, skips = x
    (left, top), (h, w) = origin, x.shape[1:3]
    x = x + encoder.pos_embed[:, top : top + h, left : left + w]  # (B, h, w, D)
    for block in encoder.blocks:
        x = block(x)
    states = x.permute(0, 3, 1, 2)  # (B, h, w, D) -> (B, D, h, w)
    embedding = encoder.neck(states)  # (B, C, h, w)
    if not skips:
        return ImageFeatures(embedding, states=states)
    summary = None if encoder.summary is None else encoder.summary(skips)
    return ImageFeatures(embedding, encoder.fine_path(embedding, skips), summary, states)


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
    decoder: MaskDecoder,
    features: ImageFeatures,
    image_pe: Tensor,
    sparse: Tensor,
    dense: Tensor,
    clicks: Clicks | None = None,
) -> tuple[Tensor, Tensor]:
    """Mask logits of all prompts of all images in one pass; equal to segment_anything's decoder for one image.

    Args:
        features: of B images; image_pe: (1, C, h, w); sparse (B*I, P, C); dense (B*I, C, h, w).
        clicks: `fine.read_clicks` of the prompts, for features with finer maps.

    Returns:
        Logits (B*I, M, 4h, 4w) and estimated IoU (B*I, M) for the decoder's M = 4 mask tokens; the first is the single
        mask, the others SAM's three candidates for an ambiguous click.
    """
    total, tokens_out = len(sparse), decoder.num_mask_tokens
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(total, -1, -1)
    tokens = torch.cat([output, sparse.to(output.dtype)], dim=1)  # (B*I, 1 + M + P, C)
    src = per_instance(features.embedding, total) + dense  # (B*I, C, h, w)
    src = src.contiguous(memory_format=torch.channels_last)  # the transformer reads it place by place
    states, flat = decoder.transformer(src, per_instance(image_pe, total), tokens)
    src = flat.transpose(1, 2).reshape(src.shape)  # (B*I, h*w, C) -> (B*I, C, h, w)
    fine = decoder.upscale(src, features.skips, clicks) if features.skips else decoder.output_upscaling(src)
    states, masks = states[:, 0], states[:, 1 : 1 + tokens_out]  # (B*I, C), (B*I, M, C)
    if clicks is not None:
        masks = masks + decoder.anchor(clicks.found)[:, None]
    heads = zip(decoder.output_hypernetworks_mlps, masks.unbind(1), strict=True)
    weights = torch.stack([mlp(token) for mlp, token in heads], dim=1)  # (B*I, M, C/8)
    logits = (weights @ fine.flatten(2)).unflatten(2, fine.shape[2:])  # (B*I, M, 4h, 4w)
    return logits, decoder.iou_prediction_head(states)
