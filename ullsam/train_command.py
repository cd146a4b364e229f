"""The command `train` of python -m ullsam: a recipe of the shipped weights, or one stage of any preset."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ullsam.errors import InputError

# option -> field of TrainConfig
SETTINGS = {
    "steps": "optimiser steps", "batch_size": "images per process and micro-step",
    "accumulate": "micro-steps per optimiser step", "lr": "peak learning rate", "warmup": "optimiser steps of warm-up",
    "seed": "of everything that is drawn", "view": "side of the training crops in pixels, 0 for whole images",
    "save_every": "optimiser steps between checkpoints", "log_every": "optimiser steps between log lines",
    "workers": "data-loading processes",
}  # fmt: skip


def add_command(commands) -> None:
    """Adds the command to the parser of python -m ullsam."""
    add = commands.add_parser("train", help="train a recipe, or one stage of a preset, or go on with it; on several GPUs: "
                              "accelerate launch -m ullsam train ...")  # fmt: skip
    add.add_argument("recipe", nargs="?", help="a name from ullsam/recipes.py, for example base; else --preset and --stage")
    add.add_argument("--out", default="runs", help="folder that holds one folder per recipe or stage (default: runs)")
    add.add_argument("--data", help="folder with corpora (default: ULLSAM_DATA)")
    add.add_argument("--preset", help="debug, tiny or paper")
    add.add_argument("--stage", type=int, help="0 encoder from scratch, 1 alignment, 2 fine-tuning, 3 segmentation")
    add.add_argument("--start", metavar="FOLDER", help="result of the stage before")
    for name in ("sam", "llm", "ullsam"):
        add.add_argument(f"--{name}", help=f"checkpoint that the preset paper takes its {name} part from, see convert")
    add.add_argument("--lora", type=int, metavar="RANK", help="of the language model's adapters; 0 trains all of it")
    add.add_argument("--precision", choices=("no", "bf16"), help="no: float32, bf16: bfloat16 autocast")
    for name, meaning in SETTINGS.items():
        kind = float if name == "lr" else int
        add.add_argument("--" + name.replace("_", "-"), type=kind, help=f"{meaning} (default: the preset's)")
    share = add.add_mutually_exclusive_group()
    share.add_argument("--synthetic", action="store_true", help="synthetic images alone, no corpora")
    share.add_argument("--synthetic-share", type=float, default=0.0, help="share of synthetic images (default: 0)")
    add.set_defaults(run=train)


def train(args: argparse.Namespace) -> None:
    """Trains one row of the recipe table, or one stage of a preset."""
    from ullsam.parallel import team
    from ullsam.recipes import run_recipe

    if (args.recipe is None) == (args.preset is None):
        raise InputError("Name a recipe, for example base, or give --preset and --stage; one of the two.")
    folder = run_recipe(args.recipe, args.out, args.data) if args.recipe else train_stage(args)
    if team().is_main_process:
        print(f"Finished; the model is in {folder}")


def train_stage(args: argparse.Namespace) -> Path:
    """Trains one stage of a preset; returns the folder of its result, --out with the preset and stage behind it."""
    from ullsam.train import STAGES, fit

    if args.stage not in STAGES:
        raise InputError(f"--stage is {args.stage}; give one of {', '.join(map(str, STAGES))}.")
    config = training(args)
    mixture, model = _mixture(args), _model(args, config.seed)
    folder = Path(args.out) / f"{args.preset}-stage{args.stage}"
    fit(model, config, mixture, folder)
    return folder


def training(args: argparse.Namespace):
    """The preset's settings of a stage with what the command line changes."""
    from ullsam.config import PAPER_TRAINING, TrainConfig

    stage = TrainConfig(stage=args.stage)
    base = PAPER_TRAINING.get(args.stage, stage) if args.preset == "paper" else stage
    given = {name: getattr(args, name) for name in (*SETTINGS, "precision") if getattr(args, name) is not None}
    low = [name for name, value in given.items() if name in ("steps", "batch_size", "accumulate") and value < 1]
    if low:
        raise InputError(f"--{low[0].replace('_', '-')} is {given[low[0]]}; give 1 or more.")
    return replace(base, **given)


def _model(args: argparse.Namespace, seed: int):
    """The preset with random weights, or from real checkpoints, or from the result of the stage before."""
    from ullsam.config import preset
    from ullsam.model import ULLSAM, load

    if args.preset == "paper" and args.start is None:
        if args.lora:
            raise InputError("--lora is for a language model that transformers loads by name; for 'paper' leave it out.")
        return load("paper", sam=args.sam, llm=args.llm, ullsam=args.ullsam)
    if args.sam or args.llm or args.ullsam:
        raise InputError("--sam, --llm and --ullsam are the parts of the preset paper without --start; leave them out.")
    if args.start is not None:
        if args.lora is not None:
            raise InputError(f"The model in {args.start} has its own adapters or none; leave --lora out.")
        return ULLSAM.from_pretrained(args.start)
    config = preset(args.preset)
    if args.lora is not None:
        config = replace(config, llm=replace(config.llm, lora_rank=args.lora))
    return ULLSAM.from_config(config, seed)


def _mixture(args: argparse.Namespace):
    from ullsam.data.corpus import data_root, find_corpora
    from ullsam.data.mixture import Mixture
    from ullsam.data.synthetic import STYLES

    corpora = [] if args.synthetic else [(c, "train") for c in find_corpora(data_root(args.data), "in_domain")]
    return Mixture(corpora, list(STYLES), 1.0 if args.synthetic else args.synthetic_share)
