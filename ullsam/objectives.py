"""What each training stage minimises: from a batch to its losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ullsam.config import TrainConfig
from ullsam.losses import mask_losses
from ullsam.model import ULLSAM
from ullsam.sam import normalise
from ullsam.types import ImageFeatures


def encode_batch(model: ULLSAM, batch: dict) -> ImageFeatures:
    """Features of a batch's images ("image", "valid_mask") or of the windows of the canvas that start at "origin"."""
    pixels = normalise(batch["image"], model.config.sam.preprocessing, batch["valid_mask"])
    return model.encode(pixels, batch["origin"])


class CaptionObjective(nn.Module):
    """Stages 1 and 2: cross-entropy of the captions, the image encoder frozen. Source: paper, section 3.3."""

    def __init__(self, model: ULLSAM, config: TrainConfig):
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: dict) -> dict[str, Tensor]:
        with torch.no_grad():
            features = encode_batch(self.model, batch)
        return {"loss": self.model.llm.caption_loss(self.model.image_tokens(features), batch["caption"])}


class SegmentationObjective(nn.Module):
    """Stage 3: BCE + Dice of prompted masks, one pass of the image encoder. Source: paper, section 3.3."""

    def __init__(self, model: ULLSAM, config: TrainConfig):
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: dict) -> dict[str, Tensor]:
        features = encode_batch(self.model, batch)
        words = batch.get("words") if self.model.vlsa is not None else None
        knowledge = self.model.knowledge(features, words)
        logits, _ = self.model.segment(features, batch["prompts"], knowledge)
        truth, valid = batch["truth"].flatten(0, 1).float(), batch["valid"].flatten()  # (B, I, ...) -> (B*I, ...)
        parts = mask_losses(logits[:, :, 0].flatten(0, 1), truth, valid)
        return {"loss": parts["bce"] + parts["dice"], **parts}
