"""Settings that only the tiny model has, and its presets."""

from __future__ import annotations

from dataclasses import dataclass

from ullsam.config import PRESETS, LlmConfig, ModelConfig, SamConfig, TrainConfig

TRANSFORMERS = ("image_encoder.blocks.", "mask_decoder.transformer.")  # what transformer_lr_scale slows down


@dataclass(frozen=True)
class TinySamConfig(SamConfig):
    """SAM with a convolutional stem, finer maps and click maps; the README of this folder says what each is for."""

    stem: tuple[int, ...] = (16, 32, 64)  # channels of the stem's maps at stride 2, 4 and 8
    qk_norm: bool = False  # normalise queries and keys, so that attention trained from scratch stays wide
    position_scale: float = 1.0  # spread of the frequencies of SAM's position code; more tells near positions apart
    summary: bool = False  # what kind of image it is, from the stem's maps, is told the language model
    scales: tuple[float, ...] = (1.0,)  # sizes at which an image is seen, fractions of S; small ones are for large objects


@dataclass(frozen=True)
class TinyTrainConfig(TrainConfig):
    """One training stage of the tiny model: what training from scratch needs beside the paper's settings.

    Stage 0 trains the encoder alone, on every pixel. At their defaults all weights of further losses are off.
    """

    transformer_lr_scale: float = 1.0  # factor on the rate of transformers (encoder, decoder), which convolutions outrun
    box_fraction: float = 0.0  # fraction of steps whose prompt is a box instead of points
    global_negative_fraction: float = 0.0  # fraction of outside points drawn anywhere outside instead of in SBR's ring
    balance: bool = False  # weigh BCE so that inside and outside of each object count the same
    iou_weight: float = 0.0  # stage 3: weight of the mask-quality head's loss
    dense_weight: float = 0.0  # stage 3: weight of predicting objects and borders from the features alone, as uSAM does
    caption_weight: float = 0.0  # stage 3: weight of the caption loss, which keeps the projection aligned
    presence_weight: float = 0.0  # stage 3: weight of saying whether what the words name is there at all
    coarse_weight: float = 0.0  # stage 3: weight of the mask loss without finer maps and click maps, as plain SAM would
    spread_weight: float = 0.0  # stages 0 and 3: weight of a penalty on states that are the same at all positions
    word_weight: float = 0.0  # stages 0 and 3: weight of naming the caption's words from the features' mean
    sentences: int = 0  # captions are cut to so many sentences; 0 keeps them whole

    def lr_scale(self, name: str) -> float:
        """Transformers learn at `transformer_lr_scale` times the rate."""
        return self.transformer_lr_scale if any(part in name for part in TRANSFORMERS) else super().lr_scale(name)

    @property
    def uniform(self) -> bool:
        """Points and boxes use different weights of the prompt encoder."""
        return self.stage != 3 or self.box_fraction in (0.0, 1.0)


VIT = dict(image_size=512, embed_dim=256, depth=6, num_heads=8, global_attn_indexes=(2, 5), window_size=8)
FROM_SCRATCH = dict(use_rel_pos=False, qk_norm=True, summary=True, position_scale=3.0, scales=(1.0, 0.5, 0.25))
SMOLLM2 = LlmConfig(name="smollm2", lora_rank=8, lora_alpha=16)
TINY_SAM = TinySamConfig(**VIT, **FROM_SCRATCH, out_chans=256, decoder_mlp_dim=512)
# tokens as long as SmolLM2's words (3.2), states without their mean, words after the image: see the README of this folder
HEARD = dict(vlsa="paper_film", token_length=3.2, centred_states=True)
TINY = ModelConfig(name="tiny", sam=TINY_SAM, llm=SMOLLM2, **HEARD)
USAM_TINY = ModelConfig(name="usam-tiny", sam=TINY_SAM, llm=None, vlsa="none")
PRESETS["tiny"] = TINY
