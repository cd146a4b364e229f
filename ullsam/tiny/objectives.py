"""What the tiny model's stages minimise and see beside the paper's: every pixel, words, boxes, far clicks.

With a `TinyTrainConfig` `ullsam.fit` takes these stages; `TINY_STAGES` adds stage 0, the encoder from scratch.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ullsam.data.batches import Batches
from ullsam.losses import bce_loss, mask_losses, presence_logit
from ullsam.model import ULLSAM
from ullsam.objectives import encode_batch
from ullsam.sbr import sample_box
from ullsam.tiny.config import TinyTrainConfig
from ullsam.tiny.losses import WORD_BINS, balanced_bce, dense_loss, feature_spread, word_loss
from ullsam.train import STAGES, Stage, stage_table
from ullsam.types import ImageFeatures, Prompts


class DenseObjective(nn.Module):
    """Stage 0: the image encoder alone learns where objects are, from every pixel, and with `word_weight` which words
    describe the image; for a SAM that starts from nothing. Its heads, one linear map each, are not kept.
    """

    def __init__(self, model: ULLSAM, config: TinyTrainConfig):
        super().__init__()
        self.model, self.config, c = model, config, model.config.sam
        self.head = nn.Conv2d(getattr(c, "stem", (0, c.out_chans))[1], 4, 1)
        self.words = nn.Linear(c.out_chans, WORD_BINS) if config.word_weight else None

    def forward(self, batch: dict) -> dict[str, Tensor]:
        features, c = encode_batch(self.model, batch), self.config
        parts = self.parts(features, batch)
        spread = feature_spread(features.states)
        loss = parts["dense"] + c.word_weight * parts.get("words", 0) + c.spread_weight * (1 - spread)
        return {"loss": loss, **parts, "spread": spread.detach()}

    def parts(self, features: ImageFeatures, batch: dict) -> dict[str, Tensor]:
        """The loss of every pixel and, where it has a weight, that of the caption's words."""
        finest = getattr(features, "skips", None) or (features.embedding,)
        parts = {"dense": dense_loss(self.head(finest[0]), batch["labels"])}
        if self.words is not None:
            parts["words"] = word_loss(self.words(features.described.mean((2, 3))), batch["caption"])
        return parts


class TinySegmentation(nn.Module):
    """Stage 3 with what training from scratch needs beside BCE + Dice; every weight of `TinyTrainConfig` is one term."""

    def __init__(self, model: ULLSAM, config: TinyTrainConfig):
        super().__init__()
        self.model, self.config = model, config
        self.encoder = DenseObjective(model, config) if config.dense_weight or config.word_weight else None

    def forward(self, batch: dict) -> dict[str, Tensor]:
        c, features = self.config, encode_batch(self.model, batch)
        knowledge, extra = self._knowledge(features, batch)
        parts = self._masks(features, knowledge, batch)
        loss = parts["bce"] + parts["dice"] + c.iou_weight * parts["iou"] + c.presence_weight * parts.get("presence", 0)
        if c.coarse_weight and getattr(features, "skips", ()):
            coarse = self._masks(replace(features, skips=()), knowledge, batch)
            loss = loss + c.coarse_weight * (coarse["bce"] + coarse["dice"])
            extra["coarse"] = coarse["dice_score"]
        if self.encoder is not None and "labels" in batch:
            extra |= self.encoder.parts(features, batch)
        weights = {"caption": c.caption_weight, "dense": c.dense_weight, "words": c.word_weight}
        spread = feature_spread(features.states)
        loss = loss + sum(weight * extra[name] for name, weight in weights.items() if name in extra)
        return {"loss": loss + c.spread_weight * (1 - spread), **parts, **extra, "spread": spread.detach()}

    def _masks(self, features: ImageFeatures, knowledge: Tensor | None, batch: dict) -> dict[str, Tensor]:
        logits, iou = self.model.segment(features, batch["prompts"], knowledge)
        truth, valid = batch["truth"].flatten(0, 1).float(), batch["valid"].flatten()
        bce, logits = balanced_bce if self.config.balance else bce_loss, logits[:, :, 0].flatten(0, 1)
        parts = mask_losses(logits, truth, valid, bce, iou[:, :, 0].flatten())
        if "words" in batch:
            there = truth.flatten(1).any(1).float()
            parts["presence"] = F.binary_cross_entropy_with_logits(presence_logit(logits), there, valid)
        return parts

    def _knowledge(self, features: ImageFeatures, batch: dict):
        """Knowledge of the batch and, where it has a weight, the caption loss, in one pass of the language model."""
        model = self.model
        if "words" in batch or not self.config.caption_weight or model.vlsa is None:
            return model.knowledge(features, batch.get("words") if model.vlsa is not None else None), {}
        tokens, vlsa = model.image_tokens(features), model.vlsa
        states, loss = model.llm.read_and_loss(tokens, batch["caption"], None, vlsa.reads, vlsa.layers)
        return vlsa(model.centre(states)), {"caption": loss}


class TinyBatches(Batches):
    """Batches with boxes, outside points far away, labels of every pixel and shortened captions."""

    def __getitem__(self, index: int) -> dict:
        batch = super().__getitem__(index)
        if "caption" in batch:
            batch["caption"] = [first_sentences(text, self.config.sentences) for text in batch["caption"]]
        return batch

    def needs_captions(self) -> bool:
        """Captions also teach the words of stages 0 and 3."""
        return super().needs_captions() or self.config.caption_weight > 0 or self.config.word_weight > 0

    def prompts(self, labels: np.ndarray, rng: np.random.Generator) -> dict:
        """`Batches.prompts`; some steps have boxes in place of points."""
        batch = super().prompts(labels, rng)
        if rng.random() >= self.config.box_fraction:
            return batch
        boxes = [[sample_box(x, int(i), rng, jitter=0.05) for i in ids] for x, ids in zip(labels, batch["ids"], strict=True)]
        return batch | {"prompts": Prompts(boxes=torch.from_numpy(np.array(boxes)))}

    def sample(self, labels: np.ndarray, rng: np.random.Generator, n_pos: int, n_neg: int) -> tuple[np.ndarray, ...]:
        """`Batches.sample`; some outside points lie anywhere outside of the object."""
        ids, points, point_labels = super().sample(labels, rng, n_pos, n_neg)
        move_outside(points, point_labels, labels, ids, rng, self.config.global_negative_fraction)
        return ids, points, point_labels


def move_outside(
    points: np.ndarray, point_labels: np.ndarray, labels: np.ndarray, ids: np.ndarray, rng, fraction: float
) -> None:
    """Moves a fraction of the outside points (I, P, 2), point_labels (I, P), in place to anywhere outside of each object."""
    chosen = (point_labels == 0) & (rng.random(point_labels.shape) < fraction) if fraction else np.zeros(0, bool)
    for i in np.flatnonzero(chosen.any(-1)):
        outside = np.flatnonzero(labels != ids[i])
        ys, xs = np.unravel_index(rng.choice(outside, chosen[i].sum()), labels.shape)
        points[i, chosen[i]] = np.stack([xs, ys], axis=1)


def first_sentences(text: str, count: int) -> str:
    """The first `count` sentences of a text, or all of it for 0."""
    parts = text.split(". ")
    return text if count == 0 or count >= len(parts) else ". ".join(parts[:count]) + "."


TINY_STAGES = {
    0: Stage("encoder from scratch", ("sam.image_encoder",), DenseObjective, "labels", TinyBatches),
    1: replace(STAGES[1], batches=TinyBatches),
    2: replace(STAGES[2], batches=TinyBatches),
    3: replace(STAGES[3], objective=TinySegmentation, batches=TinyBatches),
}


@stage_table.register
def _(config: TinyTrainConfig) -> dict[int, Stage]:
    return TINY_STAGES
