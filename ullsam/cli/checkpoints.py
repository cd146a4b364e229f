"""The commands `convert` and `parity` of python -m ullsam."""

from __future__ import annotations

import argparse
from pathlib import Path

from ullsam.errors import InputError

DTYPES = ("float32", "bfloat16", "float16")


def add_commands(commands) -> None:
    """Adds both commands to the parser of python -m ullsam."""
    add = commands.add_parser("convert", help="real checkpoints to a folder of ours, or such a folder to an official file")
    add.add_argument("--sam", help="SAM or uSAM file, or a folder or hub name such as facebook/sam-vit-base")
    add.add_argument("--llm", help="folder or hub name of InternVL2.5-2B or another language model")
    add.add_argument("--ullsam", help="official uLLSAM checkpoint")
    add.add_argument("--model", help="a saved model, to be written as an official checkpoint")
    add.add_argument("--dtype", choices=DTYPES, default="float32", help="of the language model (default: float32)")
    add.add_argument("--out", required=True, help="folder of the model, or with --model the file to write")
    add.set_defaults(run=convert)
    add = commands.add_parser("parity", help="compare our forward with recorded outputs of the official one")
    add.add_argument("folder", help="with config.json, official_checkpoint.pt and io.safetensors")
    add.add_argument("--tolerance", type=float, default=1e-4, help="largest difference that passes (default: 1e-4)")
    add.set_defaults(run=parity)


def convert(args: argparse.Namespace) -> None:
    """Writes a model of ours from real checkpoints, or an official checkpoint from a model of ours."""
    import torch

    from ullsam.checkpoints import load_paper, save_official
    from ullsam.model import load

    if args.model:
        if args.sam or args.llm or args.ullsam:
            raise InputError("--model is written as an official checkpoint by itself; leave --sam, --llm and --ullsam out.")
        if Path(args.out).is_dir():
            raise InputError(f"--out {args.out} is a folder; name a file, for example {Path(args.out) / 'ullsam.pt'}.")
        save_official(load(args.model), args.out)
    else:
        if Path(args.out).is_file():
            raise InputError(f"--out {args.out} is a file; name a folder for the model.")
        load_paper(args.sam, args.llm, args.ullsam, getattr(torch, args.dtype)).save_pretrained(args.out)
    print(f"written to {args.out}")


def parity(args: argparse.Namespace) -> int:
    """Prints the largest difference per tensor; 0 if all are within the tolerance, else 1."""
    from ullsam.checkpoints.parity import check_parity

    differences = check_parity(args.folder)
    for name, value in differences.items():
        print(f"{name:26} {value:.2e}  {'ok' if value <= args.tolerance else 'differs'}")
    return 0 if all(value <= args.tolerance for value in differences.values()) else 1
