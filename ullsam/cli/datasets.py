"""The commands `prepare-data`, `prepare-pairs` and `caption` of python -m ullsam."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from ullsam.errors import InputError


def add_commands(commands) -> None:
    """Adds the commands to the parser of python -m ullsam."""
    add = commands.add_parser("prepare-data", help="fetch and convert the paper's datasets, or those behind our weights")
    add.add_argument("name", help="a dataset; all, in_domain or out_of_domain of the paper's 19; open: behind our weights")
    add.add_argument("--out", required=True, metavar="FOLDER", help="folder of all datasets, the one for ULLSAM_DATA")
    add.add_argument("--seed", type=int, default=0, help="of the split and the sample (default: 0)")
    add.set_defaults(run=prepare_data)
    add = commands.add_parser("prepare-pairs", help="microscopy images with captions from BIOMEDICA, for stage 1")
    add.add_argument("--out", required=True, metavar="FOLDER", help="gets images/ and captions.jsonl")
    add.add_argument("--images", type=int, default=80_000, help="how many pairs (default: 80000, as in the paper)")
    add.add_argument("--shards", nargs="+", help="tar files or addresses (default: BIOMEDICA's commercial subset)")
    add.set_defaults(run=prepare_pairs)
    add = commands.add_parser("caption", help="let a large model on a server describe the images of a folder, for stage 2")
    add.add_argument("folder", help="a folder with images/; gets captions.jsonl")
    add.add_argument("--base-url", required=True, help="of an OpenAI-compatible server, such as http://localhost:8000/v1")
    add.add_argument("--model", default="Qwen2.5-VL-72B-Instruct", help="its name there (default: the paper's)")
    add.add_argument("--split", help="only this split of images.csv (default: all images)")
    add.add_argument("--workers", type=int, default=8, help="questions under way at once (default: 8)")
    add.add_argument("--timeout", type=float, default=180, help="seconds to wait for an answer (default: 180)")
    add.set_defaults(run=caption)


def prepare_data(args: argparse.Namespace) -> int:
    """Makes one dataset after the other; what fails is named at the end, and the exit code is 1."""
    from ullsam.data.sources.prepare import names, prepare_dataset

    failed = []
    for name in names(args.name):
        try:
            prepare_dataset(name, Path(args.out), args.seed, partial(print, flush=True))
        except InputError as error:
            failed.append(f"{name}: {error}")
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


def prepare_pairs(args: argparse.Namespace) -> None:
    """Streams image-text pairs into a folder."""
    from ullsam.data.sources.biomedica import SHARDS, ShardStream, save_pairs

    count = save_pairs(ShardStream(args.shards or SHARDS), Path(args.out), args.images, partial(print, flush=True))
    print(f"{count} pairs are in {args.out}")


def caption(args: argparse.Namespace) -> None:
    """Asks a server for a caption of every image of a folder."""
    from ullsam.accel.distributed import distributed_state
    from ullsam.data.sources.ask import Server, caption_folder, server_key

    server = Server(args.base_url, args.model, timeout=args.timeout, key=server_key())
    count = caption_folder(args.folder, server, args.split, args.workers, partial(print, flush=True))
    if distributed_state().is_main_process:
        print(f"{count} images have a caption in {Path(args.folder) / 'captions.jsonl'}")
