"""Commands that make what others start from: datasets, captions, questions and converted checkpoints."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from ullsam.cli.options import Name, file_to_write, is_main
from ullsam.errors import InputError

QWEN = "Qwen2.5-VL-72B-Instruct"  # what the paper asked for captions
Floats = Literal["float32", "bfloat16", "float16"]
say = partial(print, flush=True)


def prepare_data(name: Positional[str], out: str, seed: int = 0) -> int:
    """Fetch and convert the paper's datasets, or those behind our weights; what fails is named at the end.

    Args:
        name: a dataset; all, in_domain or out_of_domain of the paper's 19; open: behind our weights
        out: folder of all datasets, the one for ULLSAM_DATA
        seed: of the split and the sample
    """
    from ullsam.data.sources.prepare import names, prepare_dataset

    failed = []
    for one in names(name):
        try:
            prepare_dataset(one, Path(out), seed, say)
        except InputError as error:
            failed.append(f"{one}: {error}")
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


def prepare_pairs(out: str, images: int = 80_000, shards: tuple[str, ...] = ()) -> None:
    """Stream microscopy images with captions from BIOMEDICA into a folder, for `train --stage 1 --data FOLDER`.

    Args:
        out: gets images/ and captions.jsonl
        images: how many pairs; as in the paper without it
        shards: tar files or addresses; BIOMEDICA's commercial subset without it
    """
    from ullsam.data.sources.biomedica import SHARDS, ShardStream, save_pairs

    count = save_pairs(ShardStream(list(shards) or SHARDS), Path(out), images, say)
    print(f"{count} pairs are in {out}")


def caption(
    folder: Positional[str], base_url: str, model: str = QWEN, split: Name = None, workers: int = 8, timeout: float = 180
) -> None:
    """Let a large model on a server describe the images of a folder, for stage 2.

    Args:
        folder: a folder with images/; gets captions.jsonl
        base_url: of an OpenAI-compatible server, such as http://localhost:8000/v1
        model: its name there; the paper's without it
        split: only this split of images.csv; all images without it
        workers: questions under way at once
        timeout: seconds to wait for an answer
    """
    from ullsam.accel.distributed import distributed_state
    from ullsam.data.sources.ask import Server, caption_folder

    server = Server(base_url, model, timeout=timeout)
    count = caption_folder(folder, server, split, workers, say, distributed_state())
    if is_main():
        print(f"{count} images have a caption in {Path(folder) / 'captions.jsonl'}")


def make_questions(out: Positional[str], count: int = 300, seed: int = 0) -> None:
    """Write questions about synthetic images in MicroVQA's layout.

    Args:
        out: folder of the parquet file
        count: number of questions
        seed: of the images and questions
    """
    from ullsam.data.questions import synthetic_questions, write_questions

    print(f"written to {write_questions(out, synthetic_questions(count, seed))}")


def convert(
    out: str, sam: Name = None, llm: Name = None, ullsam: Name = None, model: Name = None, dtype: Floats = "float32"
) -> None:
    """Make a folder of ours from real checkpoints, or an official checkpoint from such a folder.

    Args:
        out: folder of the model, or with --model the file to write
        sam: SAM or uSAM file, or a folder or hub name such as facebook/sam-vit-base
        llm: folder or hub name of InternVL2.5-2B or another language model
        ullsam: official uLLSAM checkpoint
        model: a saved model, to be written as an official checkpoint
        dtype: of the language model
    """
    import torch

    from ullsam.checkpoints import load_paper, save_official
    from ullsam.checkpoints.loading import load

    if model:
        if sam or llm or ullsam:
            raise InputError("--model is written as an official checkpoint by itself; leave --sam, --llm and --ullsam out.")
        file = file_to_write(out, "ullsam.pt")
        save_official(load(model), file)
    elif Path(out).is_file():
        raise InputError(f"--out {out} is a file; name a folder for the model.")
    else:
        load_paper(sam, llm, ullsam, getattr(torch, dtype)).save_pretrained(out)
    print(f"written to {out}")


def parity(folder: Positional[str], tolerance: float = 1e-4) -> int:
    """Compare our forward with recorded outputs of the official one; the exit code is 1 where they differ.

    Args:
        folder: with config.json, official_checkpoint.pt and io.safetensors
        tolerance: largest difference that passes
    """
    from ullsam.checkpoints.parity import check_parity

    differences = check_parity(folder)
    for name, value in differences.items():
        print(f"{name:26} {value:.2e}  {'ok' if value <= tolerance else 'differs'}")
    return 0 if all(value <= tolerance for value in differences.values()) else 1
