"""One training loop for the three stages: what is trained, on what loss, from which data; exact resume."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import singledispatch
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ullsam.accel.checkpointing import less_memory
from ullsam.accel.distributed import distributed_state, full_tensor, shard, shard_like, wants_shards
from ullsam.config import TrainConfig
from ullsam.data.batches import Batches
from ullsam.data.mixture import Mixture
from ullsam.errors import InputError
from ullsam.files import read_torch, whole
from ullsam.model import ULLSAM
from ullsam.objectives import CaptionObjective, SegmentationObjective


@dataclass(frozen=True)
class Stage:
    """A row of the stage table."""

    name: str  # what the paper calls it
    trained: tuple[str, ...]  # parts of ULLSAM whose weights change
    objective: type[nn.Module]  # (model, config), then batch -> losses
    targets: str  # what its batches hold beside images: "captions", "labels", or "prompts" with labels and masks
    batches: type[Batches] = Batches


SAM_PARTS = ("sam.image_encoder", "sam.prompt_encoder", "sam.mask_decoder")
STAGES = {
    1: Stage("vision-text alignment", ("projection",), CaptionObjective, "captions"),
    2: Stage("supervised fine-tuning", ("projection", "llm"), CaptionObjective, "captions"),
    3: Stage("interactive SAM training", (*SAM_PARTS, "projection", "vlsa"), SegmentationObjective, "prompts"),
}


@singledispatch
def stage_table(config: TrainConfig) -> dict[int, Stage]:
    """The stages that go with settings of this class: the paper's three, or what `stage_table.register` adds."""
    return STAGES


def find_stage(config: TrainConfig) -> Stage:
    """The row of the stage table for these settings."""
    stages = stage_table(config)
    if config.stage not in stages:
        raise InputError(f"There is no stage {config.stage}; choose one of {', '.join(map(str, stages))}.")
    return stages[config.stage]


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


def learning_rate(step: int, config: TrainConfig) -> float:
    """Factor on the peak rate at an optimiser step: linear warm-up, then a cosine down to `final_lr`."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(named: list[tuple[str, nn.Parameter]], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels only, and the settings' own factor on the rate of each parameter."""
    groups = {}
    for name, parameter in named:
        decays = parameter.ndim > 1 and "embed" not in name
        groups.setdefault((config.weight_decay if decays else 0.0, config.lr_scale(name)), []).append(parameter)
    rows = [{"params": group, "weight_decay": decay, "factor": factor} for (decay, factor), group in groups.items()]
    return torch.optim.AdamW(rows, lr=config.lr)


def fit(
    model: ULLSAM,
    config: TrainConfig,
    mixture: Mixture,
    folder: str | Path,
    progress: bool = True,
    on_log: Callable[[dict], None] | None = None,
    objective: type[nn.Module] | None = None,
) -> list[dict]:
    """Trains one stage, or goes on where a run in `folder` stopped.

    Processes that a launcher started (accel/distributed.py) train together: each takes every n-th batch, their gradients
    are averaged, and the first alone writes. So n processes take the same steps as one with `accumulate` n times as large.
    Where the launcher asks for it, each keeps only its part of every weight; what is written is the same.

    Args:
        model: changed in place; it stays in parts where the weights are divided, load the folder then.
        config: the stage and its settings; mixture: where images come from.
        folder: gets log.jsonl, checkpoint.pt (to go on from), and at the end the model by `save_pretrained`.
        progress: show a bar; on_log: called with each log line, for live plots.
        objective: takes the place of the stage's: a module of (model, config) whose forward turns a batch into a dictionary
            with "loss" and whatever else is logged. None: the stage's own.

    Returns:
        All log lines of the run, those before an interruption included.

    Raises:
        InputError: the folder holds a run with other settings, or one of another number of processes, or weights are to
            be divided in a run whose batches do not all use the same ones.
    """
    accelerator = _accelerator(config)
    stage = find_stage(config)
    if config.word_fraction and config.recompute != "no":
        raise InputError("Several phrases for one image cannot be recomputed; with word_fraction leave recompute at 'no'.")
    stage = stage if objective is None else replace(stage, objective=objective)
    run = _Run(model, config, stage, Path(folder), accelerator, mixture.facts)
    sam, count = model.config.sam, config.steps * config.accumulate * accelerator.num_processes
    batches = stage.batches(mixture, config, sam.image_size, sam.patch_size, count, stage.targets)
    with less_memory(model.layers(), config.recompute):
        run.train(batches, progress, on_log)
    if config.word_fraction and model.vlsa is not None:
        model.config = replace(model.config, trained_with_words=True)
    state = run.whole(model.own_state())
    if accelerator.is_main_process:
        model.save_pretrained(folder, state=state)
    accelerator.wait_for_everyone()
    if model.llm is not None and not run.sharded:
        model.llm.merge_lora()  # faster from here on; what is saved are the adapters
    return run.logs


def _accelerator(config: TrainConfig):
    """Accelerate's view of all processes; in stage 3 a batch uses some parts of the model only (points or boxes)."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import patch_environment

    distributed_state()
    shared = DistributedDataParallelKwargs(find_unused_parameters=config.stage == 3)
    with patch_environment(ACCELERATE_USE_FSDP="false"):  # weights are divided by `shard`, with and without GPUs
        return Accelerator(mixed_precision="no", gradient_accumulation_steps=config.accumulate, kwargs_handlers=[shared])


class _Run:
    """State of one training run: what fit needs to step, log, save and go on."""

    def __init__(self, model: ULLSAM, config: TrainConfig, stage: Stage, folder: Path, accelerator, data: dict):
        if model.llm is not None:
            model.llm.merge_lora("llm" not in stage.trained)
        self.config, self.stage, self.folder, self.accelerator = config, stage, folder, accelerator
        self.sharded = wants_shards()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            objective = stage.objective(model, config)
        self.named, self.buffers = self._trained(model, objective), dict(model.named_buffers())
        begun, goes_on = model.__dict__.setdefault("_begun", {}), (folder / "checkpoint.pt").is_file()
        known = begun.get(folder.resolve()) if goes_on else None  # the same model again, which the run has changed
        self.start = {"start": known or fingerprint(model.own_state()), "data": data}
        begun[folder.resolve()] = self.start["start"]
        self.step, self.logs, self.seconds = 0, [], 0.0
        folder.mkdir(parents=True, exist_ok=True)
        stored = self._load() if goes_on else None
        if self.sharded:  # this process keeps its part of every weight; the trained ones are new objects afterwards
            if not config.uniform:
                raise InputError(
                    "With --use_fsdp all batches must use the same weights; set box_fraction to 0 or 1, or leave "
                    "--use_fsdp out."
                )
            shard(objective, model.layers())
            self.named = self._trained(model, objective)
        optimizer = build_optimizer(self.named, config)
        if stored is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            parts = {i: {k: shard_like(parameters[i], x) for k, x in s.items()} for i, s in stored["state"].items()}
            optimizer.load_state_dict(stored | {"state": parts})
        parts = (objective, accelerator.prepare_optimizer(optimizer)) if self.sharded else None
        self.objective, self.optimizer = parts or accelerator.prepare(objective, optimizer)

    def _trained(self, model: ULLSAM, objective: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """What is trained, by name: weights of the model, and heads that the objective adds for the time of training."""
        heads = [(name, p) for name, p in objective.named_parameters() if "model." not in name]
        return select_trained(model, self.stage) + heads

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
        number = index * self.accelerator.num_processes + self.accelerator.process_index  # of the batch among all
        torch.manual_seed(self.config.seed * 1_000_003 + number)  # dropout does not depend on where a run was resumed
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
        optimizer = self.optimizer.state_dict()
        state = {
            "config": asdict(self.config),
            "objective": self.stage.objective.__name__,
            "processes": self.accelerator.num_processes,
            "step": self.step,
            "seconds": self.seconds,
            "logs": self.logs,
            "model": self.whole(dict(self.named) | self.buffers),
            **self.start,
            "optimizer": optimizer | {"state": {i: self.whole(values) for i, values in optimizer["state"].items()}},
        }
        if self.accelerator.is_main_process:
            with whole(self.folder / "checkpoint.pt") as part:
                torch.save(state, part)

    def _load(self) -> dict:
        """Goes back to the checkpoint; returns the optimiser's state."""
        path = self.folder / "checkpoint.pt"
        state = read_torch(path, "delete it to start the run anew", mapped=False)
        if "config" not in state:
            raise InputError(f"{path} is not the checkpoint of a run; use another folder or delete it.")
        objective = self.stage.objective.__name__
        stored = asdict(type(self.config)()) | state["config"]  # a setting that did not exist then has its default
        stored, now = (
            stored | {"objective": state.get("objective", objective)},
            asdict(self.config) | {"objective": objective},
        )
        stored, now = stored | {k: state.get(k, x) for k, x in self.start.items()}, now | self.start
        changed = [k for k in stored | now if stored.get(k) != now.get(k)]
        if changed:
            raise InputError(f"{path} belongs to a run with other {', '.join(changed)}; use another folder or delete it.")
        if (count := state.get("processes", 1)) != self.accelerator.num_processes:
            raise InputError(f"{path} belongs to a run of {count} processes; start as many, or use another folder.")
        with torch.no_grad():
            for name, tensor in (dict(self.named) | self.buffers).items():
                if name in state["model"] or name not in self.buffers:
                    tensor.copy_(state["model"][name])
        self.step, self.logs, self.seconds = state["step"], state["logs"], state["seconds"]
        if self.accelerator.is_main_process:  # lines after the checkpoint are dropped
            (self.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.logs))
        return state["optimizer"]


def fingerprint(state: dict[str, Tensor]) -> str:
    """Tells weights apart: a hash of their names, shapes and about a thousand values of each."""
    found = hashlib.blake2b(digest_size=16)
    for name, x in sorted(state.items()):
        values = full_tensor(x.detach()).flatten()[:: max(1, x.numel() // 1000)].float().cpu()
        found.update(f"{name} {tuple(x.shape)}".encode() + values.numpy().tobytes())
    return found.hexdigest()


def _loader(batches: Batches, first: int, workers: int, accelerator) -> DataLoader:
    """Batches from micro-step `first` on; each process takes every num_processes-th."""
    count = accelerator.num_processes
    indexes = range(first * count + accelerator.process_index, len(batches), count)
    return DataLoader(batches, batch_size=None, sampler=indexes, num_workers=workers)
