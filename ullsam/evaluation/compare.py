"""A fair contest of VLSA variants: same start, same data, same steps, same held-out images and prompts."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ullsam.checkpoints.loading import load
from ullsam.config import TrainConfig, fast
from ullsam.data.corpus import Sample, spaced
from ullsam.data.mixture import Mixture
from ullsam.data.synthetic import STYLES, generate
from ullsam.errors import InputError
from ullsam.evaluation.metrics import hit_rate, instance_scores
from ullsam.evaluation.protocol import Points, make_prompts
from ullsam.evaluation.statistics import bootstrap
from ullsam.llm import LanguageModel
from ullsam.model import ULLSAM
from ullsam.predictor import Predictor
from ullsam.sbr import instance_ids
from ullsam.tiny.config import TinyTrainConfig
from ullsam.tiny.objectives import TINY_STAGES
from ullsam.train import Stage, fit, stage_table
from ullsam.vlsa import VlsaShape, build_vlsa, vlsa_names


@dataclass(frozen=True)
class ContestConfig(TinyTrainConfig):
    """Stage 3 in which the encoder, the projection and the language model stay as they are: a step costs half as much."""


@stage_table.register
def _(config: ContestConfig) -> dict[int, Stage]:
    return {3: replace(TINY_STAGES[3], trained=("sam.prompt_encoder", "sam.mask_decoder", "vlsa"))}


# small enough for a laptop; `view` leaves room for crops at all places of the 512 px canvas of "tiny"
TRAIN = TinyTrainConfig(
    stage=3, steps=100, batch_size=4, lr=3e-4, transformer_lr_scale=0.5, warmup=10, view=256, coarse_weight=0.5,
    vlsa_lr_scale=10.0,
)  # fmt: skip
CONTEST = ContestConfig(**vars(replace(TRAIN, steps=80, batch_size=2, prompts=((1, 0), (1, 3)))))
FAST = replace(CONTEST, steps=4, batch_size=2, warmup=1, view=0)
POINTS = ((1, 0), (1, 3))  # prompts of the test: one click, and the paper's
MOST_OBJECTS = 8  # of a test image are prompted, evenly spaced over their ids
UNSEEN = 2**31  # seeds of synthetic images from here on are never drawn by a Mixture
Variant = str | tuple[str, dict] | dict  # "film", ("film", {"reads": "before"}) or {"variant": "film", "reads": "before"}


def compare_vlsa(
    names: Sequence[Variant],
    steps: int | None = None,
    seeds: Sequence[int] = (0, 1),
    mixture: Mixture | None = None,
    held_out: Sequence[Sample] | None = None,
    folder: str | Path | None = None,
    model: str | Path | ULLSAM = "tiny",
    train: TrainConfig | None = None,
    progress: bool = True,
    prompts: Sequence[Points] = POINTS,
) -> list[dict]:
    """Train VLSA variants from one start under equal conditions and score them on images they never saw.

    A seed decides a variant's first weights and the crops and points of its training, which are the same for all
    variants. Where ULLSAM_FAST is set, a random "debug" model takes a few steps: the numbers then mean nothing.

    Args:
        names: registered variants, with options where they differ in these, see `Variant`. "none", SAM without knowledge,
            trained like the others, is always added.
        steps: optimiser steps of each run; None for 80.
        seeds: one run of each variant per seed.
        mixture: training images; None for synthetic ones.
        held_out: images to score on. None takes the split "val" of the mixture's corpora, or, where it has none,
            synthetic images that no training draws.
        folder: keeps the runs, and goes on with what is there: name a new one after a variant was changed.
            None keeps nothing.
        model: the start. "tiny" takes SAM from the shipped baseline, which no variant has shaped, and projection
            and language model from the shipped uLLSAM; a saved folder or a ULLSAM gives all its parts but the VLSA.
        train: other settings of stage 3; its steps and seed are replaced. With a `ContestConfig` (None) the encoder and
            the language model stay as they are, with `TRAIN` all learns, as in the paper.
        progress: show a bar.
        prompts: of the test, numbers of inside and outside points, or "box".

    Returns:
        For each of `prompts` one row per variant for `format_table`: variant; points; dice_mean (Dice of an object's mask)
        and sa_mean (fraction of objects with an IoU of at least 0.5), means over seeds of the mean over images; dice_std
        and sa_std, sample standard deviations over seeds (None for one seed); change, low and high: the mean paired
        difference of Dice to "none" with its 95 % interval over images and seeds; seconds_per_step; parameters of the
        VLSA; steps and model; per_seed, a list of {seed, dice, sa}; per_image, a list of {seed, image, dice, sa}.

    Raises:
        InputError: an unknown variant or option, no seed, a start without language model, or no held-out image with
            objects.
    """
    from tqdm.auto import tqdm

    start = shared_start(model)
    start.llm_or_raise()
    entries = _entries(names, start)
    if not len(seeds) or not len(prompts):
        raise InputError("seeds or prompts is empty; give at least one, for example seeds=(0, 1), prompts=((1, 3),).")
    settings = train or (FAST if fast() else CONTEST)
    steps = steps or settings.steps
    steps = min(steps, FAST.steps) if fast() else steps
    view = settings.view if settings.view < start.config.sam.image_size else 0
    settings = replace(settings, stage=3, view=view, steps=steps)
    mixture = mixture or Mixture([], list(STYLES), 1.0, synthetic_size=128 if fast() else 256)
    held_out = _held_out(mixture) if held_out is None else held_out
    if not any(len(instance_ids(sample.labels)) for sample in held_out):
        raise InputError("No held-out image has an object; give images with instance masks.")
    scores, costs = {name: [] for name in entries}, {}  # label -> for each seed the rows of score_samples
    with tempfile.TemporaryDirectory() as temporary:
        runs = [(label, seed) for seed in seeds for label in entries]
        for label, seed in tqdm(runs, desc="training runs", disable=not progress):
            variant = make_variant(start, entries[label][0], seed, entries[label][1])
            run = Path(folder or temporary) / re.sub(r"[^\w.=-]+", "_", f"{label}-seed{seed}")
            logs = fit(variant, replace(settings, seed=seed), mixture, run, progress=False)
            parameters = 0 if variant.vlsa is None else sum(p.numel() for p in variant.vlsa.parameters())
            costs[label] = {"seconds_per_step": logs[-1]["seconds"] / steps, "parameters": parameters, "steps": steps}
            scores[label].append(score_samples(variant, held_out, prompts))
    rows = []
    for points in dict.fromkeys(row["points"] for row in scores["none"][0]):
        chosen = {label: [[x for x in run if x["points"] == points] for run in found] for label, found in scores.items()}
        for label, found in chosen.items():
            row = {"variant": label, "points": points, **_means(found, chosen["none"]), **costs[label]}
            row |= {"model": start.config.name, "per_seed": _per_seed(found, seeds)}
            each = [{"seed": seed, **x} for seed, run in zip(seeds, found, strict=True) for x in run]
            rows.append(row | {"per_image": [{k: v for k, v in x.items() if k != "points"} for x in each]})
    return rows


def _entries(names: Sequence[Variant], start: ULLSAM) -> dict[str, tuple[str, dict]]:
    """Label -> name and options of each variant, "none" last where it is not named; mistakes are found before training."""
    found, c = {}, start.config.sam
    shape = VlsaShape(start.llm.dim, c.out_chans, (c.grid, c.grid), start.config.shuffle_ratio)
    for entry in [names] if isinstance(names, str | dict) else [*names]:
        name, options = _entry(entry)
        if name not in vlsa_names():
            raise InputError(f"There is no VLSA variant {name!r}; name some of {', '.join(vlsa_names())}.")
        try:
            with torch.random.fork_rng(devices=[]):
                build_vlsa(name, shape, **options) if name != "none" else None
        except TypeError as error:
            raise InputError(f"The variant {name!r} cannot be built with {options} ({error}); leave them out.") from error
        found[", ".join([name, *(f"{key}={value}" for key, value in options.items())])] = name, options
    if not found:
        raise InputError(f"names is empty; name some of {', '.join(vlsa_names())}.")
    return found if "none" in found else found | {"none": ("none", {})}


def _entry(entry: Variant) -> tuple[str, dict]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, dict) and "variant" in entry:
        return entry["variant"], {key: value for key, value in entry.items() if key != "variant"}
    if isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[1], dict):
        return entry[0], entry[1]
    raise InputError(f"{entry!r} is no variant; write 'film', ('film', {{'reads': 'before'}}) or {{'variant': 'film'}}.")


def _means(found: Sequence[Sequence[dict]], none: Sequence[Sequence[dict]]) -> dict:
    """Means and spread over seeds of one variant's rows, and how its Dice differs from that of "none"."""
    row = {}
    for key in ("dice", "sa"):
        means = [np.mean([x[key] for x in run]) for run in found]
        row[f"{key}_mean"], row[f"{key}_std"] = float(np.mean(means)), float(np.std(means, ddof=1)) if means[1:] else None
    if found is none:
        return row | dict.fromkeys(("change", "low", "high"))
    dice, others = (np.array([[x["dice"] for x in run] for run in runs]) for runs in (found, none))  # (S seeds, I images)
    change = dice - others

    def mean(seeds: np.ndarray, images: np.ndarray, axis: int = -1) -> np.ndarray:
        return change[seeds[..., :, None].astype(int), images[..., None, :].astype(int)].mean((-2, -1))

    low, high = bootstrap([np.arange(n) for n in change.shape], mean)
    return row | {"change": float(change.mean()), "low": float(low), "high": float(high)}


def _per_seed(found: Sequence[Sequence[dict]], seeds: Sequence[int]) -> list[dict]:
    pairs = zip(seeds, found, strict=True)
    return [{"seed": s, **{k: float(np.mean([x[k] for x in run])) for k in ("dice", "sa")}} for s, run in pairs]


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
        model = type(start)(config, copy.deepcopy(start.sam), llm or start.llm)
    if llm is None:
        model.projection.load_state_dict(start.projection.state_dict())
    return model.eval()


def score_samples(
    model: ULLSAM, samples: Sequence[Sample], prompts: Sequence[Points] = POINTS, most_objects: int = MOST_OBJECTS
) -> list[dict]:
    """Scores of images that have objects, which are encoded once; image i has the same prompts for every model.

    Returns:
        For each image and each of `prompts`: image, its number; points; dice, the mean Dice of at most `most_objects`
        objects; sa, the fraction of them whose mask has an IoU of at least 0.5.
    """
    predictor, rows = Predictor(model), []
    for i, sample in enumerate(samples):
        ids = np.array(spaced(instance_ids(sample.labels), most_objects))
        if not len(ids):
            continue
        predictor.set_image(sample.image)
        for points in prompts:
            given = make_prompts(sample.labels, ids, points, np.random.default_rng([0, i]))
            dices, ious = instance_scores(predictor.predict(**given).masks, sample.labels, ids)
            name = points if isinstance(points, str) else "+".join(map(str, points))
            rows.append({"image": i, "points": name, "dice": float(dices.mean()), "sa": hit_rate(ious)})
    return rows


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
    """At most 2 images of split "val" per corpus, or one unseen synthetic image of each of the mixture's styles."""
    if mixture.sources:
        chosen = [(corpus, spaced(corpus.select("val"), 2)) for corpus, _ in mixture.sources]
        return [corpus.read(record) for corpus, records in chosen for record in records]
    styles = mixture.synthetic[:3] if fast() else mixture.synthetic
    return [generate(style, UNSEEN + i, mixture.synthetic_size) for i, style in enumerate(styles)]
