"""One training loop for the three stages: what is trained, on what loss, from which data; exact resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ullsam.accel.checkpointing import less_memory
from ullsam.accel.distributed import distributed_state, full_tensor, shard, shard_like, wants_shards
from ullsam.config import TrainConfig
from ullsam.data.augment import Mixture, TrainViews, ViewConfig
from ullsam.errors import InputError
from ullsam.files import read_torch, whole
from ullsam.model import ULLSAM
from ullsam.objectives import CaptionObjective, EncoderObjective, SegmentationObjective
from ullsam.sam import Prompts
from ullsam.sbr import SbrConfig, sample_box, sample_instances


@dataclass(frozen=True)
class Stage:
    """A row of the stage table."""

    name: str  # what the paper calls it
    trained: tuple[str, ...]  # parts of ULLSAM whose weights change
    objective: type[nn.Module]  # batch -> losses
    targets: str  # what its batches hold beside images: "labels", "captions", or "prompts" with labels and masks


TRANSFORMERS = ("image_encoder.blocks.", "mask_decoder.transformer.")  # what TrainConfig.slow slows down
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
        batch = {key: torch.from_numpy(np.stack([v[key] for v in views])) for key in ("image", "valid_mask")}
        batch["origin"] = origin
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
    """AdamW with weight decay on matrices and kernels only, and the factor `slow` on the rate of transformers."""
    groups = {}
    for name, parameter in named:
        decays = parameter.ndim > 1 and "embed" not in name
        factor = config.slow if any(part in name for part in TRANSFORMERS) else 1.0
        groups.setdefault((config.weight_decay if decays else 0.0, factor), []).append(parameter)
    rows = [{"params": group, "weight_decay": decay, "factor": factor} for (decay, factor), group in groups.items()]
    return torch.optim.AdamW(rows, lr=config.lr)


def fit(
    model: ULLSAM,
    config: TrainConfig,
    mixture: Mixture,
    folder: str | Path,
    progress: bool = True,
    on_log: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Trains one stage, or goes on where a run in `folder` stopped.

    Processes that a launcher started (see `parallel.py`) train together: each takes every n-th batch, their gradients are
    averaged, and the first alone writes. So n processes take the same steps as one with `accumulate` n times as large.
    Where the launcher asks for it, each keeps only its part of every weight; what is written is the same.

    Args:
        model: changed in place; it stays in parts where the weights are divided, load the folder then.
        config: the stage and its settings; mixture: where images come from.
        folder: gets log.jsonl, checkpoint.pt (to go on from), and at the end the model by `save_pretrained`.
        progress: show a bar; on_log: called with each log line, for live plots.

    Returns:
        All log lines of the run, those before an interruption included.

    Raises:
        InputError: the folder holds a run with other settings, or one of another number of processes, or weights are to
            be divided in a run whose batches do not all use the same ones.
    """
    accelerator = _accelerator(config)
    run = _Run(model, config, Path(folder), accelerator)
    sam, count = model.config.sam, config.steps * config.accumulate * accelerator.num_processes
    batches = Batches(mixture, config, sam.image_size, sam.patch_size, count)
    with less_memory(model, config.recompute):
        run.train(batches, progress, on_log)
    state = run.whole(model.own_state())
    if accelerator.is_main_process:
        model.save_pretrained(folder, state=state)
    accelerator.wait_for_everyone()
    if model.llm is not None and not run.sharded:
        model.llm.merge_lora()  # faster from here on; what is saved are the adapters
    return run.logs


def _accelerator(config: TrainConfig):
    """Accelerate's view of this process and its fellows; in stage 3 a batch uses some parts only (points or boxes)."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import patch_environment

    distributed_state()
    shared = DistributedDataParallelKwargs(find_unused_parameters=config.stage == 3)
    with patch_environment(ACCELERATE_USE_FSDP="false"):  # weights are divided by `shard`, with and without GPUs
        return Accelerator(mixed_precision="no", gradient_accumulation_steps=config.accumulate, kwargs_handlers=[shared])


class _Run:
    """State of one training run: what fit needs to step, log, save and go on."""

    def __init__(self, model: ULLSAM, config: TrainConfig, folder: Path, accelerator):
        stage = STAGES[config.stage]
        if model.llm is not None:
            model.llm.merge_lora("llm" not in stage.trained)
        self.config, self.folder, self.accelerator, self.sharded = config, folder, accelerator, wants_shards()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            objective = stage.objective(model, config)
        self.named = _trained(model, objective, stage)
        self.step, self.logs, self.seconds = 0, [], 0.0
        folder.mkdir(parents=True, exist_ok=True)
        stored = self._load() if (folder / "checkpoint.pt").is_file() else None
        if self.sharded:
            self._shard(model, objective, stage)
        optimizer = build_optimizer(self.named, config)
        if stored is not None:
            optimizer.load_state_dict(_divided(stored, optimizer))
        parts = (objective, accelerator.prepare_optimizer(optimizer)) if self.sharded else None
        self.objective, self.optimizer = parts or accelerator.prepare(objective, optimizer)

    def _shard(self, model: ULLSAM, objective: nn.Module, stage: Stage) -> None:
        """Leaves this process its part of every weight; the trained ones are new objects afterwards."""
        if 0 < self.config.box_share < 1 and self.config.stage == 3:
            raise InputError(
                "With --use_fsdp all batches must use the same weights; set box_share to 0 or 1, or leave --use_fsdp out."
            )
        language = [] if model.llm is None else model.llm.lm.model.layers
        shard(objective, [*model.sam.image_encoder.blocks, *language])
        self.named = _trained(model, objective, stage)

    def whole(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as a whole, for the process that writes; the others help to collect divided ones and keep none."""
        pairs = ((name, full_tensor(x)) for name, x in state.items())
        return {name: x for name, x in pairs if self.accelerator.is_main_process}

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
                    group["lr"] = group["factor"] * self.config.lr * learning_rate(self.step, self.config)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return losses

    def _after_step(self, losses: dict[str, Tensor], bar, on_log) -> None:
        c, last = self.config, self.step == self.config.steps
        if not torch.isfinite(losses["loss"]):
            raise InputError(f"The loss is not finite at step {self.step}; lower the learning rate ({c.lr}) and go on.")
        if self.step % c.log_every == 0 or last:
            losses = self.accelerator.reduce({k: v.detach() for k, v in losses.items()}, "mean")
            values = {k: round(v.item(), 5) for k, v in losses.items()}
            self._log({"step": self.step, "seconds": round(self.seconds, 2), **values}, bar, on_log)
        if self.step % c.save_every == 0 or last:
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
            "config": asdict(self.config),
            "processes": self.accelerator.num_processes,
            "step": self.step,
            "seconds": self.seconds,
            "logs": self.logs,
            "model": self.whole(dict(self.named)),
            "optimizer": self._whole_optimizer(),
        }
        if self.accelerator.is_main_process:
            with whole(self.folder / "checkpoint.pt") as part:
                torch.save(state, part)

    def _whole_optimizer(self) -> dict:
        state = self.optimizer.state_dict()
        return state | {"state": {i: self.whole(values) for i, values in state["state"].items()}}

    def _load(self) -> dict:
        """Goes back to the checkpoint; returns the optimiser's state."""
        path = self.folder / "checkpoint.pt"
        state = read_torch(path, "delete it to start the run anew", mapped=False)
        if "config" not in state:
            raise InputError(f"{path} is not the checkpoint of a run; use another folder or delete it.")
        stored = asdict(TrainConfig()) | state["config"]  # a setting that did not exist then
        changed = [k for k, v in asdict(self.config).items() if stored[k] != v]
        if changed:
            raise InputError(f"{path} belongs to a run with other {', '.join(changed)}; use another folder or delete it.")
        if (count := state.get("processes", 1)) != self.accelerator.num_processes:
            raise InputError(f"{path} belongs to a run of {count} processes; start as many, or use another folder.")
        with torch.no_grad():
            for name, parameter in self.named:
                parameter.copy_(state["model"][name])
        self.step, self.logs, self.seconds = state["step"], state["logs"], state["seconds"]
        if self.accelerator.is_main_process:  # lines after the checkpoint are dropped
            (self.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.logs))
        return state["optimizer"]


def _trained(model: ULLSAM, objective: nn.Module, stage: Stage) -> list[tuple[str, nn.Parameter]]:
    """What the stage trains, by name: weights of the model, and heads that the objective adds for the time of training."""
    return select_trained(model, stage) + [x for x in objective.named_parameters() if "model." not in x[0]]


def _divided(state: dict, optimizer: torch.optim.Optimizer) -> dict:
    """The state of an optimiser as this process keeps it where its parameters are divided."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {i: {k: shard_like(parameters[i], x) for k, x in part.items()} for i, part in state["state"].items()}
    return state | {"state": parts}


def _loader(batches: Batches, first: int, workers: int, accelerator) -> DataLoader:
    """Batches from micro-step `first` on; each process takes every num_processes-th."""
    count = accelerator.num_processes
    indexes = range(first * count + accelerator.process_index, len(batches), count)
    return DataLoader(batches, batch_size=None, sampler=indexes, num_workers=workers)
