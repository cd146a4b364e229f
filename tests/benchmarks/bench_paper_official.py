"""What the official code computes for an image and for a step of stage 3, written anew from a description of it.

Its costs, not its code: pure bfloat16 weights, the image encoder twice, attention by plain matrix products, the sequence
padded to 1280 tokens, the language model's head and its loss over all of them although that loss is multiplied by zero.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.benchmarks.bench_paper_models import Size, fill, language_model, their_encoder
from ullsam import ImageFeatures, build_sam
from ullsam.losses import mask_losses
from ullsam.sam import decode_masks, encode_prompts
from ullsam.types import Prompts
from ullsam.vlsa import norm_mlp, pixel_shuffle, pixel_unshuffle


class Official(nn.Module):
    """The whole forward pass; letters as in ullsam: B images, I objects, N image tokens, D width of the language model."""

    def __init__(self, size: Size):
        super().__init__()
        self.size, width, channels = size, size.llm["hidden_size"], size.sam.out_chans
        self.encoder = their_encoder(size).bfloat16()
        self.lm = language_model(size, attention="eager")
        self.to_words = fill(norm_mlp(4 * channels, width, width)).bfloat16()
        self.to_prompts = fill(norm_mlp(width, 4 * channels, 4 * channels)).bfloat16()
        sam = fill(build_sam(size.sam))
        self.prompt_encoder, self.decoder = sam.prompt_encoder, sam.mask_decoder
        self.scale, self.shift = nn.Parameter(torch.tensor([0.1])), nn.Parameter(torch.zeros(1))

    def trained(self) -> list[nn.Parameter]:
        """All but the language model."""
        return [p for name, p in self.named_parameters() if not name.startswith("lm.")]

    def words(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """States of the image tokens (B, N, D) and the loss that nobody uses, with an encoder pass of its own."""
        with torch.no_grad():
            features = self.encoder(pixels)
        tokens = self.to_words(pixel_shuffle(features.permute(0, 2, 3, 1)).flatten(1, 2))
        embed = self.lm.get_input_embeddings()
        after = self.size.padded - self.size.before - tokens.shape[1]
        ids = torch.zeros(len(tokens), self.size.padded, dtype=torch.long)
        x = torch.cat([embed(ids[:, : self.size.before]), tokens, embed(ids[:, -after:])], dim=1)
        states = self.lm.model(inputs_embeds=x, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
        logits = self.lm.lm_head(states).float()  # (B, 1280, vocabulary)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        return states[:, self.size.before : self.size.before + tokens.shape[1]], loss

    def masks(self, pixels: Tensor, states: Tensor, prompts: Prompts) -> Tensor:
        """Mask logits (B*I, 4h, 4w), with a second encoder pass."""
        embedding = self.encoder(pixels).float()
        side = self.size.sam.grid // 2
        grid = pixel_unshuffle(self.to_prompts(states).unflatten(1, (side, side)))  # (B, N, 4C) -> (B, h, w, C)
        dense = F.layer_norm(grid.float(), grid.shape[-1:]).permute(0, 3, 1, 2) * self.scale + self.shift
        sparse, _ = encode_prompts(self.prompt_encoder, prompts)
        dense = dense.expand(len(sparse), -1, -1, -1)
        image_pe = self.prompt_encoder.get_dense_pe()
        return decode_masks(self.decoder, ImageFeatures(embedding), image_pe, sparse, dense)[0][:, 0]

    def loss(self, batch: dict) -> Tensor:
        """The loss of stage 3."""
        pixels = (batch["image"].permute(0, 3, 1, 2) / 255).bfloat16()
        states, unused = self.words(pixels)
        logits = self.masks(pixels, states, batch["prompts"])
        truth = batch["truth"].flatten(0, 1).float()
        parts = mask_losses(logits, truth, batch["valid"].flatten())
        return 0 * unused + parts["bce"] + parts["dice"]
