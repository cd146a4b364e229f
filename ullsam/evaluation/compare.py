"""A fair contest of VLSA variants: same start, same data, same steps, same held-out images and prompts."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ullsam.checkpoints.loading import load
from ullsam.config import TrainConfig, fast
from ullsam.data.corpus import Sample
from ullsam.data.mixture import Mixture
from ullsam.data.synthetic import STYLES, generate
from ullsam.errors import InputError
from ullsam.evaluation.protocol import mean_scores, score_image
from ullsam.llm import LanguageModel
from ullsam.model import ULLSAM
from ullsam.predictor import Predictor
from ullsam.tiny.config import TinyTrainConfig
from ullsam.train import fit
from ullsam.vlsa import vlsa_names

# small enough for a laptop; `view` leaves room for crops at all places of the 512 px canvas of "tiny"
TRAIN = TinyTrainConfig(
    stage=3, steps=100, batch_size=4, lr=3e-4, transformer_lr_scale=0.5, warmup=10, view=256, coarse_weight=0.5
)
FAST = replace(TRAIN, steps=4, batch_size=2, warmup=1, view=0)
UNSEEN = 2**31  # seeds of synthetic images from here on are never drawn by a Mixture


def compare_vlsa(
    names: Sequence[str],
    steps: int | None = None,
    seeds: Sequence[int] = (0, 1),
    mixture: Mixture | None = None,
    held_out: Sequence[Sample] | None = None,
    folder: str | Path | None = None,
    model: str | Path | ULLSAM = "tiny",
    train: TrainConfig | None = None,
    progress: bool = True,
) -> list[dict]:
    """Train VLSA variants from one start under equal conditions and score them on images they never saw.

    A seed decides a variant's first weights and the crops and points of its training, which are the same for all
    variants. Where ULLSAM_FAST is set, a random "debug" model takes a few steps: the numbers then mean nothing.

    Args:
        names: registered variants; "none" is SAM without knowledge, trained like the others.
        steps: optimiser steps of each run; None for 100.
        seeds: one run of each variant per seed.
        mixture: training images; None for synthetic ones.
        held_out: images to score on. None takes the split "val" of the mixture's corpora, or, where it has none,
            synthetic images that no training draws.
        folder: keeps the runs, and goes on with what is there: name a new one after a variant was changed.
            None keeps nothing.
        model: the start. "tiny" takes SAM from the shipped baseline, which no variant has shaped, and projection
            and language model from the shipped uLLSAM; a saved folder or a ULLSAM gives all its parts but the VLSA.
        train: other settings of stage 3; its steps and seed are replaced.
        progress: show a bar.

    Returns:
        One row per variant for `format_table`: variant; dice_mean (`dice_instance`) and sa_mean (`sa50_labelmap`),
        means over seeds of the mean over images; dice_std and sa_std, sample standard deviations over seeds (None
        for one seed); seconds_per_step; parameters of the VLSA; steps and model.

    Raises:
        InputError: an unknown variant, no seed, a start without language model, or a mixture without held-out images.
    """
    from tqdm.auto import tqdm

    names, start = [names] if isinstance(names, str) else list(names), shared_start(model)
    unknown = [name for name in names if name not in vlsa_names()]
    if unknown or not names:
        raise InputError(f"There are no VLSA variants {unknown}; name some of {', '.join(vlsa_names())}.")
    if not len(seeds):
        raise InputError("seeds is empty; give at least one, for example (0, 1).")
    start.llm_or_raise()
    settings = train or (FAST if fast() else TRAIN)
    steps = steps or settings.steps
    steps = min(steps, FAST.steps) if fast() else steps
    view = settings.view if settings.view < start.config.sam.image_size else 0
    settings = replace(settings, stage=3, view=view, steps=steps)
    mixture = mixture or Mixture([], list(STYLES), 1.0, synthetic_size=128 if fast() else 256)
    held_out = _held_out(mixture) if held_out is None else held_out
    rows = {name: [] for name in names}  # one per seed
    with tempfile.TemporaryDirectory() as temporary:
        runs = [(name, seed) for seed in seeds for name in names]
        for name, seed in tqdm(runs, desc="training runs", disable=not progress):
            variant, run = make_variant(start, name, seed), Path(folder or temporary) / f"{name}-seed{seed}"
            logs = fit(variant, replace(settings, seed=seed), mixture, run, progress=False)
            parameters = 0 if variant.vlsa is None else sum(p.numel() for p in variant.vlsa.parameters())
            cost = {"seconds": logs[-1]["seconds"] / steps, "parameters": parameters}
            rows[name].append(mean_scores(score_samples(variant, held_out)) | cost)
    return [_over_seeds(name, rows[name]) | {"steps": steps, "model": start.config.name} for name in names]


def _over_seeds(name: str, runs: Sequence[dict]) -> dict:
    """The runs of one variant in one row."""
    row = {"variant": name}
    for short, score in (("dice", "dice_instance"), ("sa", "sa50_labelmap")):
        values = [run[score] for run in runs]
        row[f"{short}_mean"] = float(np.mean(values))
        row[f"{short}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    seconds = float(np.mean([run["seconds"] for run in runs]))
    return row | {"seconds_per_step": seconds, "parameters": runs[0]["parameters"]}


def make_variant(
    start: ULLSAM, name: str, seed: int, options: dict | None = None, llm: LanguageModel | None = None
) -> ULLSAM:
    """A copy of `start` with a fresh VLSA of another variant; the frozen language model is shared, not copied.

    Args:
        start: with a language model; left as it is.
        name: of the variant; seed: of its first weights; options: of the variant.
        llm: takes the place of the start's language model; the projection then starts afresh, too.
    """
    config = replace(start.config, vlsa=name, vlsa_options=options or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ULLSAM(config, copy.deepcopy(start.sam), llm or start.llm)
    if llm is None:
        model.projection.load_state_dict(start.projection.state_dict())
    return model.eval()


def score_samples(model: ULLSAM, samples: Sequence[Sample]) -> list[dict]:
    """`score_image` of each sample that has instances; image i has the same points for every model."""
    predictor = Predictor(model)
    scored = [score_image(predictor, sample, np.random.default_rng([0, i])) for i, sample in enumerate(samples)]
    return [scores for scores in scored if scores]


def shared_start(model: str | Path | ULLSAM = "tiny") -> ULLSAM:
    """The model that all runs start from, see `compare_vlsa`."""
    if isinstance(model, ULLSAM):
        return model
    if fast() or str(model) == "debug":
        return ULLSAM.from_preset("debug")
    start = load(model)
    if str(model) == "tiny":
        start.sam.load_state_dict(load("usam-tiny").sam.state_dict())
    return start


def _held_out(mixture: Mixture) -> list[Sample]:
    """At most 8 images of split "val" per corpus, or unseen synthetic images of the mixture's styles."""
    if mixture.sources:
        chosen = [(corpus, corpus.select("val")[:8]) for corpus, _ in mixture.sources]
        return [corpus.read(record) for corpus, records in chosen for record in records]
    styles = mixture.synthetic[:3] if fast() else mixture.synthetic * 2
    return [generate(style, UNSEEN + i, mixture.synthetic_size) for i, style in enumerate(styles)]
