"""The command `train` of python -m ullsam: a recipe of the shipped weights, or one stage of any preset.

`--preset paper` takes what the paper says (section 3.3 and appendix A; `config.PAPER_TRAINING`). Where the authors' released
code does something else, the paper counts:

- Stage 1: learning rate 1e-4 and 3 images per GPU; the code's defaults are 2e-4, and 1 image with 8 micro-steps per step.
- Stages 1 and 2: the loss is of the answer's tokens and of the token that ends it. The code also trains on the padding
  behind it and on the words that open the assistant's turn.
- Stage 2: the language model's weights are float32 under bfloat16 autocast. The code trains pure bfloat16 weights, in which
  a step of 1e-6 is mostly lost to rounding; its examples use 1e-5 or 1e-6.
- Stage 3: the cosine falls to 2 % of the peak over optimiser steps. The code plans it in micro-steps and advances it once in
  eight, so that the warm-up takes 24 % of the run and the rate ends at 98 % of the peak.
- All: weight decay is for matrices and kernels. The code also shrinks SAM's norms and VLSA's scale.
- All: one generator by seed for points, crops and order. The code leaves numpy, which draws the points, unseeded.
- Resuming restores the optimiser. The code saves its state and never loads it.
- Both: 4 objects per image, 1 point inside and 3 outside, BCE + Dice, no loss for the mask-quality head, and a learning rate
  of 1e-3 in stage 3 (micro-sam's own is 1e-5).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ullsam.config import RECOMPUTE
from ullsam.errors import InputError

# option -> field of TrainConfig
SETTINGS = {
    "steps": "optimiser steps",
    "batch_size": "images per process and micro-step",
    "accumulate": "micro-steps per optimiser step",
    "lr": "peak learning rate",
    "warmup": "optimiser steps of warm-up",
    "seed": "of everything that is drawn",
    "view": "side of the training crops in pixels, 0 for whole images",
    "save_every": "optimiser steps between checkpoints",
    "log_every": "optimiser steps between log lines",
    "workers": "data-loading processes",
}


def add_command(commands) -> None:
    """Adds the command to the parser of python -m ullsam."""
    add = commands.add_parser(
        "train",
        help="train a recipe, or one stage of a preset, or go on with it; on several GPUs: "
        "accelerate launch [--use_fsdp] -m ullsam train ...",
    )
    add.add_argument("recipe", nargs="?", help="a name from ullsam/recipes.py, for example base; else --preset and --stage")
    add.add_argument("--out", default="runs", help="folder that holds one folder per recipe or stage (default: runs)")
    add.add_argument("--data", help="folder with corpora (default: ULLSAM_DATA)")
    add.add_argument("--preset", help="debug, tiny or paper")
    add.add_argument("--stage", type=int, help="0 encoder from scratch, 1 alignment, 2 fine-tuning, 3 segmentation")
    add.add_argument("--start", metavar="FOLDER", help="result of the stage before")
    for name in ("sam", "llm", "ullsam"):
        add.add_argument(f"--{name}", help=f"checkpoint that the preset paper takes its {name} part from, see convert")
    add.add_argument("--lora", type=int, metavar="RANK", help="of the language model's adapters; 0 trains all of it")
    add.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of a language model that stays as it is, as in stages 1 and 3 or with --lora (default: float32)",
    )
    add.add_argument("--precision", choices=("no", "bf16"), help="no: float32, bf16: bfloat16 autocast")
    add.add_argument(
        "--recompute",
        choices=RECOMPUTE,
        help="saves memory: computes again what is cheap, or all, for the "
        "backward pass (default: the preset's; paper: cheap)",
    )
    for name, meaning in SETTINGS.items():
        kind = float if name == "lr" else int
        add.add_argument("--" + name.replace("_", "-"), type=kind, help=f"{meaning} (default: the preset's)")
    share = add.add_mutually_exclusive_group()
    share.add_argument("--synthetic", action="store_true", help="synthetic images alone, no corpora")
    share.add_argument("--synthetic-share", type=float, default=0.0, help="share of synthetic images (default: 0)")
    add.set_defaults(run=train)


def train(args: argparse.Namespace) -> None:
    """Trains one row of the recipe table, or one stage of a preset."""
    from ullsam.accel.distributed import distributed_state
    from ullsam.tiny.recipes import run_recipe

    if (args.recipe is None) == (args.preset is None):
        raise InputError("Name a recipe, for example base, or give --preset and --stage; one of the two.")
    folder = run_recipe(args.recipe, args.out, args.data) if args.recipe else train_stage(args)
    if distributed_state().is_main_process:
        print(f"Finished; the model is in {folder}")


def train_stage(args: argparse.Namespace) -> Path:
    """Trains one stage of a preset; returns the folder of its result, --out with the preset and stage behind it."""
    from ullsam.train import STAGES, fit

    if args.stage not in STAGES:
        raise InputError(f"--stage is {args.stage}; give one of {', '.join(map(str, STAGES))}.")
    config = training(args)
    mixture, model = _mixture(args), _model(args, config.seed)
    _check_dtype(args, model)
    folder = Path(args.out) / f"{args.preset}-stage{args.stage}"
    fit(model, config, mixture, folder)
    return folder


def _check_dtype(args: argparse.Namespace, model) -> None:
    """Refuses to train rounded weights: a step of stage 2 is far smaller than the distance of two bfloat16 numbers."""
    if args.stage == 2 and args.dtype != "float32" and model.llm is not None and not model.config.llm.lora_rank:
        raise InputError(
            "Stage 2 trains the whole language model, and in bfloat16 steps of 1e-6 are lost to rounding; "
            "leave --dtype out, or give --lora in stage 1."
        )


def training(args: argparse.Namespace):
    """The preset's settings of a stage with what the command line changes."""
    from ullsam.config import PAPER_TRAINING, TrainConfig

    stage = TrainConfig(stage=args.stage)
    base = PAPER_TRAINING.get(args.stage, stage) if args.preset == "paper" else stage
    given = {name: getattr(args, name) for name in (*SETTINGS, "precision", "recompute") if getattr(args, name) is not None}
    low = [name for name, value in given.items() if name in ("steps", "batch_size", "accumulate") and value < 1]
    if low:
        raise InputError(f"--{low[0].replace('_', '-')} is {given[low[0]]}; give 1 or more.")
    return replace(base, **given)


def _model(args: argparse.Namespace, seed: int):
    """The preset with random weights, or from real checkpoints, or from the result of the stage before."""
    import torch

    from ullsam.checkpoints import load_paper
    from ullsam.config import preset
    from ullsam.model import ULLSAM

    if args.preset == "paper" and args.start is None:
        dtype = getattr(torch, args.dtype)
        return load_paper(args.sam, args.llm, args.ullsam, dtype, seed=seed, lora_rank=args.lora or 0)
    if args.sam or args.llm or args.ullsam:
        raise InputError("--sam, --llm and --ullsam are the parts of the preset paper without --start; leave them out.")
    if args.start is not None:
        if args.lora is not None:
            raise InputError(f"The model in {args.start} has its own adapters or none; leave --lora out.")
        return ULLSAM.from_pretrained(args.start, getattr(torch, args.dtype))
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
