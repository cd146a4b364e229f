"""The tiny model's SAM: a convolutional stem, finer maps, click maps, and a summary of the image for the language model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from segment_anything.modeling import ImageEncoderViT, TwoWayTransformer
from torch import Tensor, nn

from ullsam.errors import InputError
from ullsam.sam import (
    SAM,
    attend,
    build_image_encoder,
    build_mask_decoder,
    build_prompt_encoder,
    build_sam,
    mask_logits,
    run_blocks,
)
from ullsam.tiny.clicks import Clicks, read_clicks
from ullsam.tiny.config import TinySamConfig
from ullsam.tiny.modules import ConvStem, FineMaskDecoder, FinePath, Summary, instance_norm
from ullsam.tiny.predictor import ScalePredictor
from ullsam.types import ImageFeatures, Prompts


@dataclass(frozen=True)
class FineFeatures(ImageFeatures):
    """`ImageFeatures` with the finer maps that the mask decoder reads, and a summary for the language model."""

    skips: tuple[Tensor, ...] = ()  # stride 4 (B, b, 4h, 4w) and stride 8 (B, c, 2h, 2w)
    summary: Tensor | None = None  # (B, C, 1, 1), what kind of image it is, see `modules.Summary`

    @property
    def described(self) -> Tensor:
        """H_v of the tiny model: the features and, at every position, the summary; the paper's has the features alone."""
        return self.embedding if self.summary is None else self.embedding + self.summary

    def float(self) -> FineFeatures:
        """The same in float32."""
        summary = None if self.summary is None else self.summary.float()
        return replace(super().float(), skips=tuple(x.float() for x in self.skips), summary=summary)


class TinySAM(SAM):
    """SAM whose encoder keeps finer maps and whose mask decoder looks at them and at the clicks."""

    predictor_class = ScalePredictor

    def encode(self, pixels: Tensor, origin: tuple[int, int] = (0, 0)) -> FineFeatures:
        """Features of normalised pixels (B, 3, s, s) with finer maps, see `ullsam.sam.encode_image`."""
        encoder = self.image_encoder
        patches, skips = encoder.patch_embed(pixels)
        states = run_blocks(encoder, patches, origin)
        embedding = encoder.neck(states)  # (B, C, h, w)
        summary = None if encoder.summary is None else encoder.summary(skips)
        return FineFeatures(embedding, states, origin, encoder.fine_path(embedding, skips), summary)

    def decode(self, features: FineFeatures, sparse: Tensor, dense: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Mask logits (B*I, 4, 4h, 4w) and estimated IoU (B*I, 4); without finer maps this is SAM's own decoder."""
        if not features.skips:
            return super().decode(features, sparse, dense, prompts)
        return self.decode_fine(features, sparse, dense, read_clicks(prompts, features.skips))

    def decode_fine(self, features: FineFeatures, sparse: Tensor, dense: Tensor, clicks: Clicks) -> tuple[Tensor, Tensor]:
        """`decode` with what is told of the clicks given."""
        decoder = self.mask_decoder
        states, masks, src = attend(decoder, features, self.image_pe(features), sparse, dense)
        upscaled = decoder.upscale(src, features.skips, clicks)
        masks = masks + decoder.anchor(clicks.found)[:, None]
        return mask_logits(decoder, masks, upscaled), decoder.iou_prediction_head(states)


@build_sam.register
def build_tiny_sam(config: TinySamConfig) -> TinySAM:
    """A `TinySAM` with random weights that training from scratch can start from."""
    if config.patch_size != 16:
        raise InputError(f"A stem needs patches of 16 px, not {config.patch_size}.")
    encoder, c = build_image_encoder(config, normalise=config.qk_norm), config
    encoder.patch_embed = ConvStem(c.stem, c.embed_dim)
    encoder.neck.append(instance_norm(c.out_chans, 0.3))
    encoder.summary = Summary(c.stem[1:], c.out_chans) if c.summary else None
    encoder.fine_path = FinePath(c.stem[1:], c.out_chans)
    prompts, decoder = build_prompt_encoder(c), build_mask_decoder(c, FineMaskDecoder, widths=c.stem[1:])
    with torch.no_grad():
        start_small(encoder, c.depth)
        prompts.pe_layer.positional_encoding_gaussian_matrix *= c.position_scale
        prompts.no_mask_embed.weight.mul_(0.1)  # positions count for more than point labels at first, see instance_norm
        for embedding in prompts.point_embeddings:
            embedding.weight.mul_(0.3)
        match_positions(decoder.transformer)
    return TinySAM(encoder, prompts, decoder).eval()


def start_small(encoder: ImageEncoderViT, depth: int) -> None:
    """GPT-2's initialisation: no biases, and residual branches that add little at first."""
    nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
    for block in encoder.blocks:
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.lin1, block.mlp.lin2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        for last in (block.attn.proj, block.mlp.lin2):
            last.weight.mul_((2 * depth) ** -0.5)


def match_positions(transformer: TwoWayTransformer, gain: float = 3.0) -> None:
    """Starts cross-attention with equal query and key maps: a point attends to its own position from the first step.

    With independent random maps a decoder trained from scratch spends hundreds of steps on finding out where a point is.
    """
    layers = [m for layer in transformer.layers for m in (layer.cross_attn_token_to_image, layer.cross_attn_image_to_token)]
    for attention in (*layers, transformer.final_attn_token_to_image):
        attention.q_proj.weight.mul_(gain)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
