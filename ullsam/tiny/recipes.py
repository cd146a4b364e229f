"""The tiny model's training chain: one table, each stage started from another stage's result."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ullsam.config import ModelConfig
from ullsam.data.corpus import data_root, find_corpora
from ullsam.data.mixture import Mixture
from ullsam.data.referring import real_scenes
from ullsam.data.synthetic import STYLES
from ullsam.errors import InputError
from ullsam.files import copy_into, read_safetensors, write_json
from ullsam.model import ULLSAM
from ullsam.tiny.config import TINY, USAM_TINY, TinyTrainConfig
from ullsam.train import fit

NEW_PARTS = (".summary.", ".offset_", ".anchor.")  # of SAM: they start at zero, so weights from before they existed serve
# prompts beyond the paper's 1 + 3, so that the first click of a person works too
PROMPTS = ((1, 3), (1, 3), (1, 3), (1, 0), (2, 1), (3, 3), (1, 0), (1, 1), (2, 0), (5, 5))
SEGMENT = TinyTrainConfig(
    stage=3,
    steps=3000,
    batch_size=4,
    lr=8e-4,
    transformer_lr_scale=0.5,
    view=256,
    instances=8,
    prompts=PROMPTS,
    box_fraction=0.1,
    global_negative_fraction=0.2,
    iou_weight=0.1,
    dense_weight=0.5,
    word_weight=0.2,
    coarse_weight=0.5,
    spread_weight=0.1,
    sentences=1,
    precision="bf16",
    warmup=100,
    workers=1,
)
# half of the steps ask by words; what is new beside a trained decoder learns faster than it
WORDS = dict(word_fraction=0.5, presence_weight=0.2, vlsa_lr_scale=7.0)
ALL_DOMAINS = ("in_domain", "captions_only")  # masks are learned from the first, captions from both where they are there
CAPTION = replace(SEGMENT, stage=1, lr=4e-4, warmup=30)
TEXTURES = (*STYLES, *3 * ("shapes", "packed_shapes"))  # random textures more often than each kind of microscopy


@dataclass(frozen=True)
class Recipe:
    """One training run of the chain."""

    model: ModelConfig  # what is trained
    train: TinyTrainConfig  # how
    start: str | None = None  # stage whose result it starts from; None: random weights
    synthetic_fraction: float = 0.35  # fraction of synthetic images
    styles: tuple[str, ...] = TEXTURES  # of the synthetic images, each entry equally often
    sources: tuple[str, ...] = ("in_domain",)  # role folders of the real images, always their train split


# The shipped weights came from a longer chain that grew by trial (README.md in this folder); this one can be repeated.
RECIPES = {
    "pretrain": Recipe(USAM_TINY, replace(SEGMENT, stage=0, steps=2000, batch_size=8, lr=2e-3)),
    "align": Recipe(TINY, replace(CAPTION, steps=300), start="pretrain", sources=ALL_DOMAINS),
    "describe": Recipe(TINY, replace(CAPTION, stage=2, steps=500, sentences=0), start="align", sources=ALL_DOMAINS),
    "ullsam-tiny": Recipe(TINY, replace(SEGMENT, caption_weight=0.2, **WORDS), start="describe"),
    "usam-tiny": Recipe(USAM_TINY, SEGMENT, start="pretrain"),
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
    if recipe.start:
        load_parts(model, folder / recipe.start)
    root = data_root(data)
    roles = [role for role in recipe.sources if role == "in_domain" or (Path(root) / role).is_dir()]
    corpora = [(corpus, "train") for role in roles for corpus in find_corpora(root, role)]
    named = real_scenes(root, "train") if recipe.train.word_fraction else ()
    mixture = Mixture(corpora, recipe.styles, recipe.synthetic_fraction, named=named)
    fit(model, recipe.train, mixture, folder / name, progress)
    return folder / name


def load_parts(model: ULLSAM, folder: str | Path, fresh: tuple[str, ...] = ()) -> None:
    """Starts `model` from another model's weights: all that it shares with the saved one, SAM's parts always (but what
    adds nothing at first may be new: the encoder's summary, and what the decoder reads off the clicks).

    Args:
        fresh: starts of names whose weights stay as they are in `model`.

    Raises:
        InputError: the saved model lacks a part of SAM, or has a part of another shape or that `model` lacks.
    """

    def may_be_new(key: str) -> bool:
        return not key.startswith("sam.") or key.startswith(fresh) or any(part in key for part in NEW_PARTS)

    state = {k: v for k, v in read_safetensors(folder).items() if not k.startswith(fresh)}
    copy_into(model, state, folder, ignore=tuple(k for k in model.state_dict() if k not in state and may_be_new(k)))


def ship(name: str, folder: str | Path, data: str | Path = "data") -> Path:
    """Puts a finished recipe's model into data/weights as float16 and its log into data/results/training_log.json; logs of
    earlier stages that are there already and whose run is gone are kept.

    Raises:
        InputError: the run is not finished.
    """
    model = ULLSAM.from_pretrained(Path(folder) / name)
    target = Path(data) / "weights" / name
    model.save_pretrained(target, torch.float16)
    path = Path(data) / "results" / "training_log.json"
    logs, stage = json.loads(path.read_text()) if path.is_file() else {}, name
    while stage:
        log = Path(folder) / stage / "log.jsonl"
        if log.is_file() or stage not in logs:
            logs[stage] = [json.loads(line) for line in log.read_text(encoding="utf-8").split("\n") if line]
        stage = RECIPES[stage].start
    write_json(path, logs)
    return target
