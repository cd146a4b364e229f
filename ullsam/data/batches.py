"""Training batches: views of images with captions, or with SBR prompts and the masks that they ask for."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from ullsam.config import TrainConfig
from ullsam.data.augment import TrainViews, ViewConfig
from ullsam.data.mixture import Mixture
from ullsam.data.wordviews import word_view
from ullsam.sbr import SbrConfig, sample_instances
from ullsam.types import Prompts


class Batches(Dataset):
    """Whole batches, each a pure function of (seed, index): the order survives a restart and any number of processes.

    A batch has image uint8 (B, S, S, 3), valid_mask bool (B, S, S), origin; for captions caption, a list of B texts; for
    prompts labels (B, S, S), prompts, ids (B, I), truth (B, I, S, S) and valid (B, I).

    Args:
        mixture: where images come from; config: the stage and its settings.
        image_size: side of the model's square image; patch_size: of its patches; both in pixels.
        count: number of batches.
        targets: "captions", "labels" or "prompts"; None: what the paper's stage needs.
    """

    def __init__(
        self, mixture: Mixture, config: TrainConfig, image_size: int, patch_size: int, count: int, targets: str | None = None
    ):
        view = config.view or image_size
        self.config, self.count = config, count
        self.targets = targets or ("captions" if config.stage in (1, 2) else "prompts")
        self.sbr = SbrConfig(reference_side=SbrConfig().reference_side * view // image_size)  # distances on the canvas
        self.spare = (image_size - view) // patch_size  # patches that a window can move on the canvas
        options = {"with_captions": self.needs_captions(), "canvas": image_size}
        if self.targets == "captions" and any(corpus.captions for corpus, _ in mixture.sources):
            options["config"] = ViewConfig(whole=1.0)  # a written caption is of the whole image
        self.views = TrainViews(mixture, count * config.batch_size, config.seed, view, **options)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng([self.config.seed, 1, index])
        size = self.config.batch_size
        if (
            self.config.word_fraction
            and np.random.default_rng([self.config.seed, 2, index]).random() < self.config.word_fraction
        ):
            return self.by_words(rng)
        views = [self.views[index * size + i] for i in range(size)]
        batch = {key: torch.from_numpy(np.stack([v[key] for v in views])) for key in ("image", "valid_mask")}
        batch["origin"] = self.origin(rng)
        if self.needs_captions():
            batch["caption"] = [v["caption"] for v in views]
        if self.targets == "captions":
            return batch
        labels = np.stack([v["labels"] for v in views])
        batch["labels"] = torch.from_numpy(labels)
        return batch | self.prompts(labels, rng) if self.targets == "prompts" else batch

    def origin(self, rng: np.random.Generator) -> tuple[int, int]:
        """Where a batch's windows lie on the canvas, (x, y) in patches."""
        return tuple(2 * int(x) for x in rng.integers(0, self.spare // 2 + 1, 2))

    def by_words(self, rng: np.random.Generator) -> dict:
        """A batch whose objects are named: words, B * I texts, and prompts with one inside click or none."""
        view, c = self.views.view, self.config
        found = []
        while len(found) < c.batch_size:
            row = word_view(self.views.mixture.draw_named(rng), rng, view, self.views.canvas, c.instances)
            found += [row] if row is not None else []
        batch = {k: torch.from_numpy(np.stack([x[k] for x in found])) for k in ("image", "valid_mask", "truth", "valid")}
        points, labels = (torch.from_numpy(np.stack([x[k] for x in found])) for k in ("points", "point_labels"))
        words = [text for x in found for text in x["words"]]
        return batch | {"origin": self.origin(rng), "prompts": Prompts(points, labels), "words": words}

    def needs_captions(self) -> bool:
        """Whether the images' captions are part of a batch."""
        return self.targets == "captions"

    def prompts(self, labels: np.ndarray, rng: np.random.Generator) -> dict:
        """SBR prompts and true masks of `instances` objects per image; spare rows repeat objects with valid = 0."""
        c = self.config
        n_pos, n_neg = c.prompts[rng.integers(len(c.prompts))]
        rows = []
        for image in labels:
            ids, points, point_labels = self.sample(image, rng, n_pos, n_neg)
            valid = (np.arange(c.instances) < len(ids)).astype(np.float32)
            if len(ids) == 0:  # one object fills the whole view: nothing to learn, but the batch keeps its shape
                count = n_pos + n_neg
                ids, points, point_labels = np.ones(1, int), np.zeros((1, count, 2), np.float32), np.zeros((1, count))
            order = np.resize(np.arange(len(ids)), c.instances)  # 0, 1, .., n-1, 0, 1, ..
            truth = image == ids[order, None, None]
            rows.append((points[order], point_labels[order].astype(np.float32), ids[order], truth, valid))
        points, point_labels, ids, truth, valid = (torch.from_numpy(np.stack(x)) for x in zip(*rows, strict=True))
        return {"prompts": Prompts(points, point_labels), "ids": ids, "truth": truth, "valid": valid}

    def sample(self, labels: np.ndarray, rng: np.random.Generator, n_pos: int, n_neg: int) -> tuple[np.ndarray, ...]:
        """Objects of one image and their points, see `sbr.sample_instances`."""
        return sample_instances(labels, rng, self.config.instances, n_pos, n_neg, self.sbr)
