"""One training loop for the three stages: what is trained, on what loss, from which data; exact resume."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ullsam.config import TrainConfig
from ullsam.data.views import Mixture, TrainViews, ViewConfig
from ullsam.errors import InputError
from ullsam.model import ULLSAM
from ullsam.objectives import CaptionObjective, EncoderObjective, SegmentationObjective
from ullsam.parallel import team
from ullsam.sam import Prompts
from ullsam.sbr import SbrConfig, sample_box, sample_instances


@dataclass(frozen=True)
class Stage:
    """A row of the stage table."""

    name: str  # what the paper calls it
    trained: tuple[str, ...]  # parts of ULLSAM whose weights change
    objective: type[nn.Module]  # batch -> losses
    targets: str  # what its batches hold beside images: "labels", "captions", or "prompts" with labels and masks


SAM_PARTS = ("sam.image_encoder", "sam.prompt_encoder", "sam.mask_decoder")
STAGES = {
    0: Stage("encoder from scratch", ("sam.image_encoder",), EncoderObjective, "labels"),  # the paper starts from uSAM
    1: Stage("vision-text alignment", ("projection",), CaptionObjective, "captions"),
    2: Stage("supervised fine-tuning", ("projection", "llm"), CaptionObjective, "captions"),
    3: Stage("interactive SAM training", (*SAM_PARTS, "projection", "vlsa"), SegmentationObjective, "prompts"),
}


def select_trained(model: ULLSAM, stage: Stage) -> list[tuple[str, nn.Parameter]]:
    """Switches gradients on for the stage's parts and off for all others; returns what is trained, by name.

    With LoRA, the language model's part is its adapters. A part that the model lacks (no language model) is passed over.
    """
    lora = model.config.llm is not None and model.config.llm.lora_rank > 0
    for name, parameter in model.named_parameters():
        trained = name.startswith(stage.trained)
        parameter.requires_grad_(trained and (not lora or not name.startswith("llm.") or "lora_" in name))
    chosen = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not chosen:
        raise InputError(f"Model {model.config.name} has nothing to train in the stage {stage.name!r}.")
    return chosen


class Batches(Dataset):
    """Whole batches, each a pure function of (seed, index): the order survives a restart and any number of processes."""

    def __init__(self, mixture: Mixture, config: TrainConfig, image_size: int, patch_size: int, count: int):
        stage, view = STAGES[config.stage], config.view or image_size
        self.config, self.count, self.stage = config, count, stage
        self.sbr = SbrConfig(reference_side=SbrConfig().reference_side * view // image_size)  # distances on the canvas
        self.spare = (image_size - view) // patch_size  # patches that a window can move on the canvas
        self.captions = stage.targets == "captions" or config.caption_weight > 0 or config.word_weight > 0
        kind = {"with_captions": self.captions, "canvas": image_size}
        if stage.targets == "captions" and any(corpus.captions for corpus, _ in mixture.sources):
            kind["config"] = ViewConfig(whole=1.0)  # a written caption is of the whole image
        self.views = TrainViews(mixture, count * config.batch_size, config.seed, view, **kind)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng([self.config.seed, 1, index])
        size = self.config.batch_size
        views = [self.views[index * size + i] for i in range(size)]
        origin = tuple(2 * int(x) for x in rng.integers(0, self.spare // 2 + 1, 2))
        batch = {"image": torch.from_numpy(np.stack([v["image"] for v in views])), "origin": origin}
        if self.captions:
            batch["caption"] = [first_sentences(v["caption"], self.config.sentences) for v in views]
        if self.stage.targets == "captions":
            return batch
        labels = np.stack([v["labels"] for v in views])
        batch["labels"] = torch.from_numpy(labels)
        return batch if self.stage.targets == "labels" else batch | self._prompts(labels, rng)

    def _prompts(self, labels: np.ndarray, rng: np.random.Generator) -> dict:
        """SBR prompts and true masks of `instances` objects per image; spare places repeat objects with valid = 0."""
        n_pos, n_neg = self.config.prompts[rng.integers(len(self.config.prompts))]
        rows = [self._image_prompts(x, rng, n_pos, n_neg) for x in labels]
        points, kinds, boxes, truth, valid = (torch.from_numpy(np.stack(x)) for x in zip(*rows, strict=True))
        use_box = rng.random() < self.config.box_share
        prompts = Prompts(boxes=boxes) if use_box else Prompts(points, kinds)
        return {"prompts": prompts, "truth": truth, "valid": valid}

    def _image_prompts(self, labels: np.ndarray, rng: np.random.Generator, n_pos: int, n_neg: int):
        ids, points, kinds = sample_instances(labels, rng, self.config.instances, n_pos, n_neg, self.sbr)
        valid = (np.arange(self.config.instances) < len(ids)).astype(np.float32)
        if len(ids) == 0:  # one object fills the whole view: nothing to learn, but the batch keeps its shape
            count = n_pos + n_neg
            ids, points, kinds = np.ones(1, int), np.zeros((1, count, 2), np.float32), np.zeros((1, count))
        else:
            move_outside(points, kinds, labels, ids, rng, self.config.far_share)
        order = np.resize(np.arange(len(ids)), self.config.instances)  # 0, 1, .., n-1, 0, 1, ..
        boxes = np.stack([sample_box(labels, i, rng, jitter=0.05) for i in ids])
        truth = labels == ids[order, None, None]
        return points[order], kinds[order].astype(np.float32), boxes[order], truth, valid


def move_outside(
    points: np.ndarray, kinds: np.ndarray, labels: np.ndarray, ids: np.ndarray, rng: np.random.Generator, share: float
) -> None:
    """Moves a share of the outside points (I, P, 2), kinds (I, P), of each object in place to anywhere outside of it."""
    chosen = (kinds == 0) & (rng.random(kinds.shape) < share) if share else np.zeros(kinds.shape, bool)
    for i in np.flatnonzero(chosen.any(1)):
        outside = np.flatnonzero(labels != ids[i])
        ys, xs = np.unravel_index(rng.choice(outside, chosen[i].sum()), labels.shape)
        points[i, chosen[i]] = np.stack([xs, ys], axis=1)


def first_sentences(text: str, count: int) -> str:
    """The first `count` sentences of a text, or all of it for 0."""
    parts = text.split(". ")
    return text if count == 0 or count >= len(parts) else ". ".join(parts[:count]) + "."


def learning_rate(step: int, config: TrainConfig) -> float:
    """Factor on the peak rate at an optimiser step: linear warm-up, then a cosine down to `final_lr`."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(named: list[tuple[str, nn.Parameter]], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels only."""
    decay = {n: p for n, p in named if p.ndim > 1 and "embed" not in n}
    rest = [p for n, p in named if n not in decay]
    groups = [{"params": [*decay.values()], "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr)


def fit(
    model: ULLSAM, config: TrainConfig, mixture: Mixture, folder: str | Path,
    progress: bool = True, on_log: Callable[[dict], None] | None = None,
) -> list[dict]:  # fmt: skip
    """Trains one stage, or goes on where a run in `folder` stopped.

    Processes that a launcher started (see `parallel.py`) train together: each takes every n-th batch, their gradients are
    averaged, and the first alone writes. So n processes take the same steps as one with `accumulate` n times as large.

    Args:
        model: changed in place; config: the stage and its settings; mixture: where images come from.
        folder: gets log.jsonl, checkpoint.pt (to go on from), and at the end the model by `save_pretrained`.
        progress: show a bar; on_log: called with each log line, for live plots.

    Returns:
        All log lines of the run, those before an interruption included.

    Raises:
        InputError: the folder holds a run with other settings, or one of another number of processes.
    """
    accelerator = _accelerator(config)
    run = _Run(model, config, Path(folder), accelerator)
    sam, count = model.config.sam, config.steps * config.accumulate * accelerator.num_processes
    batches = Batches(mixture, config, sam.image_size, sam.patch_size, count)
    run.train(batches, progress, on_log)
    if accelerator.is_main_process:
        model.save_pretrained(folder)
    accelerator.wait_for_everyone()
    if model.llm is not None:
        model.llm.merge_lora()  # faster from here on; what is saved are the adapters
    return run.logs


def _accelerator(config: TrainConfig):
    """Accelerate's view of this process and its fellows; in stage 3 a batch uses some parts only (points or boxes)."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    team()
    shared = DistributedDataParallelKwargs(find_unused_parameters=config.stage == 3)
    return Accelerator(mixed_precision="no", gradient_accumulation_steps=config.accumulate, kwargs_handlers=[shared])


class _Run:
    """State of one training run: what fit needs to step, log, save and go on."""

    def __init__(self, model: ULLSAM, config: TrainConfig, folder: Path, accelerator):
        stage = STAGES[config.stage]
        if model.llm is not None:
            model.llm.merge_lora("llm" not in stage.trained)
        self.config, self.folder, self.accelerator = config, folder, accelerator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            objective = stage.objective(model, config)
        self.named = select_trained(model, stage) + [x for x in objective.named_parameters() if "model." not in x[0]]
        self.optimizer = build_optimizer(self.named, config)
        self.step, self.logs, self.seconds = 0, [], 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "checkpoint.pt").is_file():
            self._load()
        self.objective, self.optimizer = accelerator.prepare(objective, self.optimizer)

    def train(self, batches: Batches, progress: bool, on_log) -> None:
        from accelerate.utils import send_to_device
        from tqdm.auto import tqdm

        first = self.step * self.config.accumulate
        loader = _loader(batches, first, self.config.workers, self.accelerator)
        hidden = not progress or not self.accelerator.is_main_process
        bar = tqdm(total=self.config.steps, initial=self.step, disable=hidden, desc=f"stage {self.config.stage}")
        self.objective.train()
        start, before = time.perf_counter(), self.seconds
        for i, batch in enumerate(loader, first):
            losses = self._micro_step(send_to_device(batch, self.accelerator.device), i)
            if (i + 1) % self.config.accumulate:
                continue
            self.step += 1
            self.seconds = before + time.perf_counter() - start
            bar.update()
            self._after_step(losses, bar, on_log)
        bar.close()
        self.objective.eval()

    def _micro_step(self, batch: dict, index: int) -> dict[str, Tensor]:
        place = index * self.accelerator.num_processes + self.accelerator.process_index  # of the batch among all
        torch.manual_seed(self.config.seed * 1_000_003 + place)  # dropout does not depend on where a run was resumed
        with self.accelerator.accumulate(self.objective):
            with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                losses = self.objective(batch)
            self.accelerator.backward(losses["loss"])
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_([p for _, p in self.named], self.config.clip)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.config.lr * learning_rate(self.step, self.config)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return losses

    def _after_step(self, losses: dict[str, Tensor], bar, on_log) -> None:
        c, last = self.config, self.step == self.config.steps
        if not torch.isfinite(losses["loss"]):
            raise InputError(
                f"The loss is not finite at step {self.step}; lower the learning rate ({c.lr}) and go on."
            )
        if self.step % c.log_every == 0 or last:
            losses = self.accelerator.reduce({k: v.detach() for k, v in losses.items()}, "mean")
            values = {k: round(v.item(), 5) for k, v in losses.items()}
            self._log({"step": self.step, "seconds": round(self.seconds, 2), **values}, bar, on_log)
        if (self.step % c.save_every == 0 or last) and self.accelerator.is_main_process:
            self._save()

    def _log(self, line: dict, bar, on_log) -> None:
        self.logs.append(line)
        if not self.accelerator.is_main_process:
            return
        bar.set_postfix(loss=line["loss"])
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if on_log:
            on_log(line)

    def _save(self) -> None:
        """Everything that the rest of the run depends on, in one file that is complete or absent."""
        state = {
            "config": asdict(self.config), "processes": self.accelerator.num_processes, "step": self.step,
            "seconds": self.seconds, "logs": self.logs, "model": {n: p.detach() for n, p in self.named},
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        torch.save(state, self.folder / "checkpoint.pt.part")
        os.replace(self.folder / "checkpoint.pt.part", self.folder / "checkpoint.pt")

    def _load(self) -> None:
        path = self.folder / "checkpoint.pt"
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["config"] != asdict(self.config):
            changed = [k for k, v in asdict(self.config).items() if state["config"].get(k) != v]
            raise InputError(
                f"{path} belongs to a run with other {', '.join(changed)}; use another folder or delete it."
            )
        count = state.get("processes", 1)
        if count != self.accelerator.num_processes:
            raise InputError(f"{path} belongs to a run of {count} processes; start as many, or use another folder.")
        with torch.no_grad():
            for name, parameter in self.named:
                parameter.copy_(state["model"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.logs, self.seconds = state["step"], state["logs"], state["seconds"]
        if self.accelerator.is_main_process:
            lines = "".join(json.dumps(line) + "\n" for line in self.logs)
            (self.folder / "log.jsonl").write_text(lines)  # drops lines after the checkpoint


def _loader(batches: Batches, first: int, workers: int, accelerator) -> DataLoader:
    """Batches from micro-step `first` on; each process takes every num_processes-th."""
    indexes = range(
        first * accelerator.num_processes + accelerator.process_index, len(batches), accelerator.num_processes
    )
    return DataLoader(batches, batch_size=None, sampler=indexes, num_workers=workers)
