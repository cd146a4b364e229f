"""The front door: any model of the package by name or folder."""

from __future__ import annotations

from pathlib import Path

import torch

import ullsam.tiny  # noqa: F401  makes the tiny model's settings known
import ullsam.variants  # noqa: F401  makes the VLSA variants known
from ullsam.checkpoints.paper import load_paper
from ullsam.errors import InputError
from ullsam.model import ULLSAM

SHIPPED = {"tiny": "ullsam-tiny", "usam-tiny": "usam-tiny"}  # names of the weights in data/weights


def shipped(name: str) -> Path:
    """Where a file or folder that comes with ullsam is: "weights/ullsam-tiny" or "results/tiny_test.json".

    In the repository that is the folder data, in an installed package the package itself.
    """
    package = Path(__file__).parents[1]
    candidates = [package.parent / "data" / name, package / name]
    return next((p for p in candidates if p.exists()), candidates[0])


def load(
    name: str | Path, sam=None, llm=None, ullsam=None, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> ULLSAM:
    """The shipped weights "tiny" (uLLSAM) or "usam-tiny" (the baseline without language model), a saved folder, or "paper".

    Args:
        name: "paper" is put together from real checkpoints.
        sam, llm, ullsam: where "paper" takes its parts from, see `ullsam.checkpoints.load_paper`.
        dtype: of the language model of "paper" or of a folder that was made from it; all else is float32.
        device: where the weights go.

    Raises:
        InputError: there is no such model, or its files are damaged.
    """
    if str(name) == "paper":
        return load_paper(sam, llm, ullsam, dtype, device)
    if sam or llm or ullsam:
        raise InputError(f"sam=, llm= and ullsam= are the parts of 'paper'; leave them out to load {name}.")
    folder = shipped(f"weights/{SHIPPED[str(name)]}") if str(name) in SHIPPED else name
    return ULLSAM.from_pretrained(folder, dtype, device)
