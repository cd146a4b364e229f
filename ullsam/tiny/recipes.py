"""The runs that made the shipped weights: one table, each row started from another row's result."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ullsam.config import TINY, ModelConfig, TrainConfig
from ullsam.data.corpus import data_root, find_corpora
from ullsam.data.mixture import Mixture
from ullsam.data.synthetic import STYLES
from ullsam.errors import InputError
from ullsam.files import write_json
from ullsam.model import ULLSAM, load_parts
from ullsam.train import fit

USAM_TINY = replace(TINY, name="usam-tiny", llm=None, vlsa="none")
PLAIN = replace(USAM_TINY, sam=replace(TINY.sam, summary=False))
# prompts beyond the paper's 1 + 3, so that the first click of a person works too
PROMPTS = ((1, 3), (1, 3), (1, 3), (1, 0), (2, 1), (3, 3))
MORE_PROMPTS = (*PROMPTS, (1, 0), (1, 1), (2, 0), (5, 5))
SEGMENT = TrainConfig(
    stage=3,
    batch_size=4,
    lr=5e-4,
    view=256,
    instances=8,
    prompts=PROMPTS,
    box_share=0.1,
    iou_weight=0.1,
    dense_weight=0.5,
    precision="bf16",
    warmup=100,
    workers=1,
)
DENSE = replace(SEGMENT, stage=0, batch_size=8, lr=2e-3, prompts=(), box_share=0.0)
KINDS = replace(SEGMENT, prompts=MORE_PROMPTS, far_share=0.2, word_weight=0.2, sentences=1)
WIDE = replace(KINDS, lr=3e-4, batch_size=2, view=384, instances=12, seed=1, sentences=0)
LAST = replace(WIDE, steps=200, warmup=30, seed=5)
AGREE = replace(LAST, steps=100, seed=8, slow=0.5, coarse_weight=0.5, spread_weight=0.1)
CAPTION = replace(SEGMENT, stage=1, lr=4e-4, warmup=30, prompts=(), box_share=0.0)
ALIVE = replace(KINDS, lr=8e-4, slow=0.5, coarse_weight=0.5, spread_weight=0.1)
# transformers that had become the same everywhere, and what had adapted to that
DEAD = (
    "sam.image_encoder.blocks.",
    "sam.image_encoder.neck.",
    "sam.mask_decoder.transformer.",
    "sam.mask_decoder.output_upscaling.0.",
)
SHAPES = (*STYLES, *3 * ("shapes", "packed_shapes"))  # random textures more often than each kind of microscopy


@dataclass(frozen=True)
class Recipe:
    """One training run of the chain."""

    model: ModelConfig  # what is trained
    train: TrainConfig  # how
    start: str | None = None  # recipe whose result it starts from; None: random weights
    language: str | None = None  # recipe whose projection, VLSA and adapters it keeps, where `start` has none
    synthetic_share: float = 0.25  # share of synthetic images
    styles: tuple[str, ...] = tuple(STYLES)  # of the synthetic images, each entry equally often
    sources: str = "in_domain"  # role folder of the real images, always their train split
    fresh: tuple[str, ...] = ()  # starts of names of weights that begin anew


RECIPES = {
    "encoder": Recipe(PLAIN, replace(DENSE, steps=1200)),
    "base": Recipe(PLAIN, replace(SEGMENT, steps=2000, lr=1e-3), start="encoder"),
    "settle": Recipe(PLAIN, replace(SEGMENT, steps=300, lr=3e-4, seed=1), start="base"),
    "kinds": Recipe(USAM_TINY, replace(KINDS, steps=700, seed=2), start="settle"),
    "align": Recipe(TINY, replace(CAPTION, steps=300, sentences=1), start="kinds"),
    "sft": Recipe(TINY, replace(CAPTION, stage=2, steps=400), start="align"),
    "talk": Recipe(TINY, replace(WIDE, steps=300, caption_weight=0.2), start="sft"),
    "wide": Recipe(USAM_TINY, replace(WIDE, steps=300), start="kinds"),
    "shapes": Recipe(USAM_TINY, replace(KINDS, steps=1200, lr=1e-3, final_lr=0.73, seed=3), "wide", None, 0.35, SHAPES),
    "clicks": Recipe(USAM_TINY, replace(KINDS, steps=1800, lr=1e-3, final_lr=0.2, seed=4), "shapes", None, 0.35, SHAPES),
    "local": Recipe(USAM_TINY, replace(KINDS, steps=1300, lr=1e-3, seed=6), "clicks", None, 0.35, SHAPES),
    "realign": Recipe(TINY, replace(CAPTION, steps=40, sentences=1, seed=1), start="local", language="talk"),
    "counts": Recipe(TINY, replace(CAPTION, stage=2, steps=150, batch_size=2, view=0, seed=1), start="realign"),
    "speaker": Recipe(TINY, replace(LAST, caption_weight=0.2), "counts", None, 0.35, SHAPES),
    "steady": Recipe(USAM_TINY, LAST, "local", None, 0.35, SHAPES),
    "alive": Recipe(USAM_TINY, replace(ALIVE, steps=1600, seed=7), "steady", None, 0.35, SHAPES, fresh=DEAD),
    "relearn": Recipe(TINY, replace(CAPTION, steps=60, sentences=1, seed=2), start="alive", language="speaker"),
    "ullsam-tiny": Recipe(TINY, replace(AGREE, caption_weight=0.2), "relearn", None, 0.35, SHAPES),
    "usam-tiny": Recipe(USAM_TINY, AGREE, "alive", None, 0.35, SHAPES),
}


def run_recipe(name: str, folder: str | Path, data: str | Path | None = None, progress: bool = True) -> Path:
    """Trains one row of the table, or goes on with it; returns the folder of its result.

    Args:
        name: a key of `RECIPES`; folder: holds one folder per recipe; data: corpora, by default those of ULLSAM_DATA.

    Raises:
        InputError: unknown recipe, or the run that it starts from is not finished.
    """
    if name not in RECIPES:
        raise InputError(f"There is no recipe {name!r}; choose one of {', '.join(RECIPES)}.")
    recipe, folder = RECIPES[name], Path(folder)
    model = ULLSAM.from_config(recipe.model, recipe.train.seed)
    if recipe.language:
        load_parts(model, folder / recipe.language, ("sam.",))  # SAM comes from `start`
    if recipe.start:
        load_parts(model, folder / recipe.start, recipe.fresh)
    corpora = [(corpus, "train") for corpus in find_corpora(data_root(data), recipe.sources)]
    mixture = Mixture(corpora, recipe.styles, recipe.synthetic_share)
    fit(model, recipe.train, mixture, folder / name, progress)
    return folder / name


def ship(name: str, folder: str | Path, data: str | Path = "data") -> Path:
    """Puts a finished recipe's model into data/weights as float16 and its log into data/results/training_log.json; logs of
    earlier recipes that are there already and whose run is gone are kept.

    Raises:
        InputError: the run is not finished.
    """
    model = ULLSAM.from_pretrained(Path(folder) / name)
    target = Path(data) / "weights" / name
    model.save_pretrained(target, torch.float16)
    path = Path(data) / "results" / "training_log.json"
    logs = json.loads(path.read_text()) if path.is_file() else {}
    for step in _ancestry(name):
        log = Path(folder) / step / "log.jsonl"
        if log.is_file() or step not in logs:
            logs[step] = [json.loads(line) for line in log.read_text().splitlines()]
    write_json(path, logs)
    return target


def _ancestry(name: str) -> set[str]:
    """A recipe and all that it goes back to."""
    parents = [parent for parent in (RECIPES[name].start, RECIPES[name].language) if parent]
    return {name}.union(*map(_ancestry, parents))
