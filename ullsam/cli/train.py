"""Commands around training: a recipe of the shipped weights or one stage of any preset, the lab log, and shipping.

Where the paper and its released code differ, the preset paper follows the paper, see docs/paper_training.md.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from ullsam.cli.options import is_main, one_of
from ullsam.errors import InputError

LOG = "data/results/experiments.jsonl"


@dataclass(frozen=True)
class Model:
    """The model that one stage trains."""

    preset: str | None = None  # debug, tiny or paper
    start: str | None = None  # folder with the result of the stage before
    sam: str | None = None  # checkpoint of SAM for the preset paper, see convert
    llm: str | None = None  # checkpoint of the language model for the preset paper
    ullsam: str | None = None  # official uLLSAM checkpoint for the preset paper
    lora: int | None = None  # rank of the language model's adapters; 0 trains all of it
    # of a language model that stays as it is, as in stages 1 and 3 or with --lora
    dtype: Literal["float32", "bfloat16"] = "float32"

    def build(self, seed: int):
        """The preset with random weights, or from real checkpoints, or from the result of the stage before."""
        import torch

        from ullsam.checkpoints import load, load_paper
        from ullsam.config import preset
        from ullsam.model import ULLSAM

        dtype, parts = getattr(torch, self.dtype), (self.sam, self.llm, self.ullsam)
        if self.preset == "paper" and self.start is None:
            return load_paper(*parts, dtype, seed=seed, lora_rank=self.lora or 0)
        if any(parts):
            raise InputError("--sam, --llm and --ullsam are the parts of the preset paper without --start; leave them out.")
        if self.start is None:
            config = preset(self.preset)
            llm = config.llm if self.lora is None else replace(config.llm, lora_rank=self.lora)
            return ULLSAM.from_config(replace(config, llm=llm), seed)
        if self.lora is not None:
            raise InputError(f"The model in {self.start} has its own adapters or none; leave --lora out.")
        return load(self.start, dtype=dtype)


@dataclass(frozen=True)
class Settings:
    """What is changed of the preset's settings."""

    steps: int | None = None  # optimiser steps
    batch_size: int | None = None  # images per process and micro-step
    accumulate: int | None = None  # micro-steps per optimiser step
    lr: float | None = None  # peak learning rate
    warmup: int | None = None  # optimiser steps of warm-up
    seed: int | None = None  # of everything that is drawn
    view: int | None = None  # side of the training crops in pixels, 0 for whole images
    save_every: int | None = None  # optimiser steps between checkpoints
    log_every: int | None = None  # optimiser steps between log lines
    workers: int | None = None  # data-loading processes
    precision: Literal["no", "bf16"] | None = None  # no: float32, bf16: bfloat16 autocast
    # saves memory: computes again what is cheap, or all, for the backward pass
    recompute: Literal["no", "cheap", "all"] | None = None

    def config(self, preset: str | None, stage: int):
        """The preset's settings of a stage with these changes."""
        from ullsam.config import PAPER_TRAINING
        from ullsam.tiny.config import TinyTrainConfig

        given = {name: value for name, value in asdict(self).items() if value is not None}
        plain = TinyTrainConfig(stage=stage)  # at its defaults the paper's stages, and stage 0
        return replace(PAPER_TRAINING.get(stage, plain) if preset == "paper" else plain, **given)


@dataclass(frozen=True)
class Data:
    """What the model is trained on."""

    # folder of all datasets (ULLSAM_DATA without it) or of a single one; for stages 1 and 2 also what prepare-pairs made
    data: str | None = None
    synthetic: bool = False  # synthetic images alone, no datasets
    synthetic_fraction: float = 0.0  # how many of the images are synthetic, 0 to 1

    def mixture(self, captions: bool):
        """What a stage draws from; where it learns `captions` alone, image-text pairs serve, too."""
        from ullsam.data import corpus, mixture, pairs, synthetic

        one_of(data=self.data, synthetic=self.synthetic)
        one_of(synthetic=self.synthetic, synthetic_fraction=self.synthetic_fraction)
        sources = [] if self.synthetic else pairs.training_sources(corpus.data_root(self.data), captions)
        return mixture.Mixture(sources, list(synthetic.STYLES), 1.0 if self.synthetic else self.synthetic_fraction)


def train(
    recipe: Positional[str | None] = None,
    stage: int | None = None,
    out: str = "runs",
    model: Model = Model(),
    data: Data = Data(),
    settings: Settings = Settings(),
) -> None:
    """Train a recipe, or one stage of a preset, or go on with it.

    On several GPUs: accelerate launch [--use_fsdp] -m ullsam train ...

    Args:
        recipe: a name of ullsam/tiny/recipes.py; else --preset and --stage
        stage: 0 encoder from scratch, 1 alignment, 2 fine-tuning, 3 segmentation
        out: folder that holds one folder per recipe or stage
    """
    from ullsam.tiny.objectives import TINY_STAGES
    from ullsam.tiny.recipes import run_recipe
    from ullsam.train import fit

    if (recipe is None) == (model.preset is None):
        raise InputError("Name a recipe, for example ullsam-tiny, or give --preset and --stage; one of the two.")
    if recipe is not None:
        folder = run_recipe(recipe, out, data.data)
    elif stage not in TINY_STAGES:
        raise InputError(f"--stage is {stage}; give one of {', '.join(map(str, TINY_STAGES))}.")
    else:
        folder, config = Path(out) / f"{model.preset}-stage{stage}", settings.config(model.preset, stage)
        mixture, network = data.mixture(TINY_STAGES[stage].targets == "captions"), model.build(config.seed)
        if stage == 2 and model.dtype != "float32" and network.llm is not None and not network.config.llm.lora_rank:
            raise InputError(
                "Stage 2 trains the whole language model, and in bfloat16 steps of 1e-6 are lost to rounding; "
                "leave --dtype out, or give --lora in stage 1."
            )
        fit(network, config, mixture, folder)
    if is_main():
        print(f"Finished; the model is in {folder}")


def log_run(folder: Positional[str], note: str, data: str | None = None, limit: int | None = None, out: str = LOG) -> None:
    """Score a training run on validation images and append it to the lab log.

    Args:
        folder: folder of a finished run
        note: what was tried, and why
        data: folder of all datasets; ULLSAM_DATA without it
        limit: at most so many images per dataset; all without it
        out: the lab log
    """
    from ullsam.data.corpus import data_root, find_corpora
    from ullsam.lab.log import log_run

    print(json.dumps(log_run(folder, note, find_corpora(data_root(data), "in_domain"), out, limit), indent=1))


def ship(recipe: Positional[str], out: str = "runs") -> None:
    """Copy a finished recipe's model to data/weights and its log to data/results.

    Args:
        recipe: ullsam-tiny or usam-tiny
        out: folder of the recipes
    """
    from ullsam.tiny.recipes import ship

    print(f"The weights are in {ship(recipe, out)}")
