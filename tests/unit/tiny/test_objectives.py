"""What the tiny model's stages add to the paper's: each term by itself, boxes and far clicks, slower transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ullsam import ULLSAM, Mixture, TrainConfig, fit, preset
from ullsam.data.batches import Batches
from ullsam.objectives import SegmentationObjective
from ullsam.sam import normalise
from ullsam.tiny import TinySamConfig, TinySegmentation, TinyTrainConfig
from ullsam.tiny.objectives import TINY_STAGES, TinyBatches, first_sentences, move_outside
from ullsam.train import stage_table

SMALL = TinyTrainConfig(steps=3, batch_size=2, warmup=1, instances=2, log_every=1, save_every=2)
STEM = TinySamConfig(**{**vars(preset("debug").sam), "stem": (8, 16, 24), "use_rel_pos": False})


def mixture():
    return Mixture([], ["fluorescence_nuclei", "em_mitochondria"], 1.0, synthetic_size=64)


def test_with_every_further_weight_at_zero_stage_three_is_the_papers():
    model = ULLSAM.from_preset("debug")
    plain = TrainConfig(**{k: v for k, v in vars(SMALL).items() if k in vars(TrainConfig())})
    batches = Batches(mixture(), plain, 64, 16, 2), TinyBatches(mixture(), SMALL, 64, 16, 2)
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a["prompts"].points, b["prompts"].points) and torch.equal(a["truth"], b["truth"])
        losses = SegmentationObjective(model, plain)(a)["loss"], TinySegmentation(model, SMALL)(b)["loss"]
        assert torch.equal(*losses)
        break
    assert stage_table(SMALL) is TINY_STAGES and set(stage_table(plain)) == {1, 2, 3}


def test_some_steps_have_boxes_of_the_same_objects():
    batches = TinyBatches(mixture(), replace(SMALL, box_fraction=0.5), 64, 16, 12)
    kinds = set()
    for i in range(12):
        batch = batches[i]
        kinds.add(batch["prompts"].boxes is None)
        if batch["prompts"].boxes is not None:
            x0, y0, x1, y1 = batch["prompts"].boxes.unbind(-1)  # (B, I) each
            ys, xs = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
            truth = batch["truth"]
            middle = (truth * xs).sum((2, 3)) / truth.sum((2, 3)), (truth * ys).sum((2, 3)) / truth.sum((2, 3))
            assert ((x0 <= middle[0]) & (middle[0] <= x1) & (y0 <= middle[1]) & (middle[1] <= y1)).all()
    assert kinds == {True, False}


def test_states_that_are_the_same_everywhere_can_be_penalised():
    model, batch = ULLSAM.from_preset("debug", llm=None, vlsa="none"), TinyBatches(mixture(), SMALL, 64, 16, 1)[0]
    plain, held = (TinySegmentation(model, replace(SMALL, spread_weight=w))(batch) for w in (0.0, 0.5))
    torch.testing.assert_close(held["loss"], plain["loss"] + 0.5 * (1 - held["spread"]))


def test_captions_can_be_kept_in_stage_three(tmp_path):
    config = replace(SMALL, caption_weight=0.5)
    batch = TinyBatches(mixture(), config, 64, 16, 1)[0]
    model = ULLSAM.from_preset("debug")
    losses = TinySegmentation(model, config)(batch)
    features = model.encode(normalise(batch["image"], "sam", batch["valid_mask"]))
    expected = model.llm.caption_loss(model.image_tokens(features), batch["caption"])
    torch.testing.assert_close(losses["caption"], expected)
    parts = losses["bce"] + losses["dice"] + 0.5 * losses["caption"]
    torch.testing.assert_close(losses["loss"], parts)
    plain = TinySegmentation(model, SMALL)(batch)  # the same masks, whether captions follow the image or not
    torch.testing.assert_close(plain["bce"], losses["bce"])


@pytest.mark.parametrize("stage, dense", [(0, 1.0), (3, 1.0), (3, 0.0)])
def test_words_can_be_learned_beside_the_masks(stage, dense):
    config = replace(SMALL, stage=stage, word_weight=0.5, dense_weight=dense, sentences=1)
    batch = TinyBatches(mixture(), config, 64, 16, 1)[0]
    assert all(text.count(".") == 1 for text in batch["caption"])
    model = ULLSAM.from_preset("debug", llm=None, vlsa="none")
    losses = TINY_STAGES[stage].objective(model, config)(batch)
    rest = sum(losses.get(name, 0) for name in ("bce", "dice")) + dense * losses["dense"]
    torch.testing.assert_close(losses["loss"], rest + 0.5 * losses["words"])
    losses["words"].backward()
    assert any(p.grad is not None and p.grad.any() for p in model.sam.image_encoder.parameters())


def test_masks_can_be_learned_without_finer_maps_too():
    model, batch = ULLSAM.from_preset("debug", sam=STEM), TinyBatches(mixture(), SMALL, 64, 16, 1)[0]
    plain, both = (TinySegmentation(model, replace(SMALL, coarse_weight=w))(batch) for w in (0.0, 0.5))
    features = replace(model.encode(normalise(batch["image"], "sam", batch["valid_mask"])), skips=())
    coarse = TinySegmentation(model, SMALL)._masks(features, model.knowledge(features), batch)
    torch.testing.assert_close(both["coarse"], coarse["dice_score"])
    torch.testing.assert_close(both["loss"], plain["loss"] + 0.5 * (coarse["bce"] + coarse["dice"]))
    (both["loss"] - plain["loss"]).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.vlsa.parameters())  # what knowledge is added to has to matter


def test_training_learns(tmp_path):
    """A small SAM with a convolutional stem learns one image's objects by heart."""
    config = replace(SMALL, steps=80, lr=3e-3, warmup=5, balance=True)
    sam = replace(STEM, position_scale=3.0)
    model = ULLSAM.from_preset("debug", sam=sam, llm=None, vlsa="none")

    class Same(Mixture):
        def draw(self, rng):
            return super().draw(np.random.default_rng(0))

    logs = fit(model, config, Same([], ["fluorescence_nuclei"], 1.0, synthetic_size=64), tmp_path, progress=False)
    first, last = (np.mean([x["bce"] for x in part]) for part in (logs[:5], logs[-10:]))
    assert last < 0.8 * first


def test_outside_points_can_lie_anywhere_outside():
    labels = np.zeros((32, 32), np.int32)
    labels[:16], labels[16:20, :4] = 1, 2
    points, point_labels = np.zeros((2, 60, 2), np.float32), np.zeros((2, 60))
    point_labels[:, 0] = 1
    move_outside(points, point_labels, labels, np.array([1, 2]), np.random.default_rng(0), 0.5)
    moved = points.any(2)
    assert not moved[:, 0].any() and 15 < moved[0].sum() < 45
    for i in (0, 1):
        x, y = points[i, moved[i]].astype(int).T
        assert (labels[y, x] != i + 1).all() and np.ptp(x) > 20
    before = points.copy()
    move_outside(points, point_labels, labels, np.array([1, 2]), np.random.default_rng(0), 0.0)
    assert np.array_equal(points, before)


def test_transformers_can_learn_more_slowly(tmp_path):
    model = ULLSAM.from_preset("debug", llm=None, vlsa="none")
    before = {k: v.clone() for k, v in model.named_parameters()}
    fit(
        model,
        replace(SMALL, steps=1, warmup=0, transformer_lr_scale=0.1, weight_decay=0.0),
        mixture(),
        tmp_path,
        progress=False,
    )
    moved = {k: (v - before[k]).abs().max().item() for k, v in model.named_parameters()}
    for name, size in moved.items():  # the first step of Adam is the rate itself
        is_slow = "blocks." in name or "transformer." in name
        assert size <= 1.01 * SMALL.lr * (0.1 if is_slow else 1), name
    assert max(moved.values()) > 0.9 * SMALL.lr


def test_first_sentences():
    text = "Nuclei in a 2.5 um section. There are five. They touch."
    assert first_sentences(text, 0) == first_sentences(text, 3) == first_sentences(text, 9) == text
    assert first_sentences(text, 1) == "Nuclei in a 2.5 um section." and first_sentences(text, 2).endswith("There are five.")
