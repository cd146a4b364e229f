"""What each training stage minimises: from a batch to its losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ullsam.config import TrainConfig
from ullsam.losses import WORD_PLACES, dense_loss, mask_losses, word_loss
from ullsam.model import ULLSAM
from ullsam.sam import ImageFeatures, normalise


def feature_spread(states: Tensor) -> Tensor:
    """Share of the states' power that differs between places and images, 0..1; near 0 they say nothing of the image."""
    x = states.float().transpose(0, 1).flatten(1)  # (B, C, h, w) -> (C, B*h*w)
    return x.var(1, unbiased=False).sum() / (x**2).mean(1).sum()


def _encode(model: ULLSAM, batch: dict) -> ImageFeatures:
    return model.encode(normalise(batch["image"], model.config.sam.preprocessing, batch["valid_mask"]), batch["origin"])


class CaptionObjective(nn.Module):
    """Stages 1 and 2: cross-entropy of the captions, the image encoder frozen. Source: paper, section 3.3."""

    def __init__(self, model: ULLSAM, config: TrainConfig):
        super().__init__()
        self.model = model

    def forward(self, batch: dict) -> dict[str, Tensor]:
        with torch.no_grad():
            features = _encode(self.model, batch)
        loss = self.model.llm.caption_loss(self.model.image_tokens(features), batch["caption"])
        return {"loss": loss}


class EncoderObjective(nn.Module):
    """Stage 0: the image encoder alone learns where objects are, from every pixel, and with `word_weight` which words
    describe the image; for a SAM that starts from nothing. Its heads, one linear map each, are not kept.
    """

    def __init__(self, model: ULLSAM, config: TrainConfig):
        super().__init__()
        self.model, self.config, c = model, config, model.config.sam
        self.head = nn.Conv2d(c.stem[1] if c.stem else c.out_chans, 4, 1)
        self.words = nn.Linear(c.out_chans, WORD_PLACES) if config.word_weight else None

    def forward(self, batch: dict) -> dict[str, Tensor]:
        features = _encode(self.model, batch)
        parts = self.parts(features, batch)
        spread = feature_spread(features.states)
        loss = parts["dense"] + self.config.word_weight * parts.get("words", 0) + self.config.spread_weight * (1 - spread)
        return {"loss": loss, **parts, "spread": spread.detach()}

    def parts(self, features: ImageFeatures, batch: dict) -> dict[str, Tensor]:
        """The loss of every pixel and, where it has a weight, that of the caption's words."""
        finest = features.skips[0] if features.skips else features.embedding
        parts = {"dense": dense_loss(self.head(finest), batch["labels"])}
        if self.words is not None:
            parts["words"] = word_loss(self.words(features.described.mean((2, 3))), batch["caption"])
        return parts


class SegmentationObjective(nn.Module):
    """Stage 3: BCE + Dice of prompted masks, one pass of the image encoder. Source: paper, section 3.3."""

    def __init__(self, model: ULLSAM, config: TrainConfig):
        super().__init__()
        self.model, self.config = model, config
        self.encoder = EncoderObjective(model, config) if config.dense_weight or config.word_weight else None

    def forward(self, batch: dict) -> dict[str, Tensor]:
        model, c = self.model, self.config
        features = _encode(model, batch)
        knowledge, extra = self._knowledge(features, batch)
        parts = self._masks(features, knowledge, batch)
        loss = parts["bce"] + parts["dice"] + c.iou_weight * parts["iou"]
        if c.coarse_weight and features.skips:
            coarse = self._masks(features._replace(skips=()), knowledge, batch)
            loss = loss + c.coarse_weight * (coarse["bce"] + coarse["dice"])
            extra["coarse"] = coarse["dice_score"]
        if self.encoder is not None:
            extra |= self.encoder.parts(features, batch)
        weights = {"caption": c.caption_weight, "dense": c.dense_weight, "words": c.word_weight}
        spread = feature_spread(features.states)
        loss = loss + sum(weight * extra[name] for name, weight in weights.items() if name in extra)
        return {"loss": loss + c.spread_weight * (1 - spread), **parts, **extra, "spread": spread.detach()}

    def _masks(self, features: ImageFeatures, knowledge: Tensor | None, batch: dict) -> dict[str, Tensor]:
        logits, iou = self.model.segment(features, batch["prompts"], knowledge, batch["origin"])
        truth, valid = batch["truth"].flatten(0, 1).float(), batch["valid"].flatten()
        return mask_losses(logits[:, :, 0].flatten(0, 1), iou[:, :, 0].flatten(), truth, valid, self.config.balance)

    def _knowledge(self, features, batch: dict):
        """Knowledge of the batch and, where it has a weight, the caption loss that keeps the projection aligned."""
        if self.config.caption_weight and self.model.vlsa is not None:
            knowledge, loss = self.model.knowledge_and_caption_loss(features, batch["caption"])
            return knowledge, {"caption": loss}
        return self.model.knowledge(features), {}
