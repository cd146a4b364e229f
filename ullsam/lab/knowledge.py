"""Does vision-language knowledge say something about the image, and do the masks listen? Measured on a trained model.

Four questions, on the same images and points: what a linear layer can read off the states on the way from image
features to knowledge (probes); what becomes of the masks when knowledge is exchanged (masks); how large and how
varied knowledge is beside what it is added to (sizes, shares); and how much of the language model's states depends on the
position, the image and the words (power).
Letters: I objects of one image, K vectors of knowledge, C SAM width, h w feature grid.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ullsam.data.corpus import Corpus, spaced
from ullsam.data.io import from_square
from ullsam.errors import InputError
from ullsam.evaluation.metrics import instance_scores
from ullsam.evaluation.protocol import folder_name, make_prompts
from ullsam.evaluation.statistics import estimate
from ullsam.lab.probes import STEPS, ForwardTrace, power_fractions, probe_states, sklearn, trace_corpus, variance_fractions
from ullsam.model import ULLSAM
from ullsam.sbr import instance_ids
from ullsam.types import Prompts

ARMS = {  # what takes the place of an image's own knowledge, then what else is exchanged, for comparison
    "none": "knowledge switched off",
    "other": "knowledge of another image",
    "places": "own knowledge, positions shuffled",
    "constant": "one average for all images and positions",
    "zero": "zeros",
    "double": "own knowledge times 2",
    "five": "own knowledge times 5",
    "points": "control: new points on the same objects",
    "coarse": "control: coarse features of another image",
    "features": "control: all features of another image",
}
MEASURES = ("dice", "logit_change", "flipped", "moved")
STEP_NAMES = {"tokens": "projection", "hidden": "language model", "knowledge": "VLSA"}  # what a step is done by
POINTS = (1, 3)  # positive and negative points of an object
WORDS = ("nucleus", "cell", "mitochondrion", "neurite")  # that stand before and after each image to measure power
EACH = 2  # images of each corpus whose power is measured
SMALL = 0.01  # a change of Dice below which masks count as the same
_CHUNK = 16  # objects decoded at a time, which bounds the memory


@torch.no_grad()
def measure_knowledge(
    model: ULLSAM,
    corpora: Sequence[Corpus],
    split: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    fit_split: str | None = "train",
    fit_limit: int = 12,
    most_objects: int = 8,
    progress: bool = False,
) -> dict:
    """Measure what knowledge says and what the masks make of it.

    Args:
        model: with a VLSA of any kind: knowledge is a vector for each place of SAM's grid, or some vectors for prompts.
        corpora, split, limit: the images that are measured; `limit` in each corpus, evenly spaced.
        seed: of the points, of what is drawn, and of the bootstrap.
        fit_split, fit_limit: images that the probes learn from, `fit_limit` in each corpus.
        most_objects: at most so many objects of an image are segmented, evenly spaced over their ids.
        progress: show a bar for each corpus on standard error.

    Returns:
        probes, masks, sizes, shares, power and reading, see `probes.probe_states`, `change_masks`, `sizes`,
        `probes.variance_fractions` (of each step), `probes.power_fractions` (of a few images and WORDS) and `read`;
        n_images, n_objects; model, data, split, points, seed, fit_split, fit_limit, most_objects; seconds; per_image. A
        measured number is a dictionary {mean, interval, n}: over images, with its 95 % bootstrap interval.

    Raises:
        InputError: a model without VLSA, fewer than two images, no scikit-learn, or as `evaluate`.
    """
    from tqdm import tqdm

    start = time.perf_counter()
    conditions = {"split": split, "points": list(POINTS), "seed": seed, "fit_split": fit_split, "fit_limit": fit_limit}
    conditions["most_objects"] = most_objects
    _check(model)
    traces, fitted = (
        [x for i, c in enumerate(corpora) for x in trace_corpus(model, c, i, *chosen, progress, keep)]
        for *chosen, keep in ((split, seed, limit, True), (fit_split, seed, fit_limit, False))
    )
    if len(traces) < 2:
        raise InputError("Knowledge is compared between images; give at least two images with objects.")
    partners = [_partner(traces, i, len(corpora)) for i in range(len(traces))]
    average = torch.stack([_average(x.knowledge) for x in traces]).mean(0)
    names, rows = [folder_name(corpus) for corpus in corpora], []
    for i, x in enumerate(tqdm(traces, desc="masks", unit="image", disable=not progress)):
        (prompts, ids), (again, _) = (_prompts(x, seed + k, most_objects, model.device) for k in (0, 1))
        arms = _arms(x, traces[partners[i]], average, prompts, again, np.random.default_rng([seed, i]))
        scores = _score_arms(model, x, arms, ids)
        rows.append({"file": x.file, "data": names[x.corpus], "n_objects": len(ids), **scores})
    inside, states = np.stack([x.inside for x in traces]).all(0), {}
    for step in STEPS:
        states[step] = np.stack([x.states[step][inside] if step in x.grids else x.states[step] for x in traces])
    sets = [group for i in range(len(corpora)) if (group := [x.sample.image for x in traces if x.corpus == i])]
    result = {
        "probes": probe_states(fitted, traces, partners, seed),
        "masks": change_masks(rows, seed),
        "sizes": sizes(model, traces, seed),
        "shares": {step: variance_fractions(x, seed) for step, x in states.items()},
        "power": power_fractions(model, [spaced(x, min(EACH, *map(len, sets))) for x in sets], WORDS),
    }
    return {
        "model": model.config.name,
        "data": names,
        **conditions,
        "n_images": len(traces),
        "n_objects": sum(row["n_objects"] for row in rows),
        **result,
        "reading": read(result),
        "seconds": round(time.perf_counter() - start, 3),
        "per_image": rows,
    }


def _check(model: ULLSAM) -> None:
    sklearn("linear_model")
    model.llm_or_raise()
    if model.vlsa is None:
        raise InputError(f"Model {model.config.name} has no VLSA, so no knowledge; load one that has, for example 'tiny'.")


def _average(knowledge: Tensor) -> Tensor:
    """The mean (1, C, 1, 1) over the positions of a grid; other knowledge as it is."""
    return knowledge.mean((2, 3), keepdim=True) if knowledge.ndim == 4 else knowledge


def _partner(traces: Sequence[ForwardTrace], index: int, corpora: int) -> int:
    """Another image: of the corpus half-way round the list (two corpora may show the same views), or of the same one."""
    mine = [i for i, x in enumerate(traces) if x.corpus == traces[index].corpus]
    for step in range(corpora // 2, corpora // 2 + corpora):
        theirs = [i for i, x in enumerate(traces) if x.corpus == (traces[index].corpus + step) % corpora]
        if theirs and theirs != mine:
            return theirs[mine.index(index) % len(theirs)]
    return mine[(mine.index(index) + 1) % len(mine)]


def _prompts(x: ForwardTrace, seed: int, most: int, device: torch.device) -> tuple[Prompts, np.ndarray]:
    """The SBR points that `evaluate` draws, of at most so many objects of an image, and the ids of these."""
    ids = instance_ids(x.sample.labels)
    drawn = make_prompts(x.sample.labels, ids, POINTS, np.random.default_rng([seed, x.index]))
    kept = spaced(range(len(ids)), most)
    given = x.square.points_in(drawn["points"])[kept], drawn["labels"][kept]
    return Prompts(*(torch.as_tensor(v, dtype=torch.float32, device=device)[None] for v in given)), ids[kept]


def _arms(x: ForwardTrace, other: ForwardTrace, average: Tensor, prompts: Prompts, again: Prompts, rng) -> dict:
    """Features, prompts and knowledge of each of ARMS, "own" first."""
    f, k = x.features, x.knowledge
    flat = k.flatten(2) if k.ndim == 4 else k.mT if k.ndim == 3 else k  # (1, C, positions), (1, d, K) or (1, d)
    mixed = flat[..., torch.from_numpy(rng.permutation(flat.shape[-1])).to(k.device)]
    exchanged = {
        "own": k,
        "none": None,
        "other": other.knowledge,
        "places": mixed.view_as(k) if k.ndim == 4 else mixed.mT,
        "constant": average.expand_as(k),
        "zero": torch.zeros_like(k),
        "double": 2 * k,
        "five": 5 * k,
    }
    if k.ndim == 2:  # no positions
        del exchanged["places"]
    arms = {name: (f, prompts, value) for name, value in exchanged.items()} | {"points": (f, again, k)}
    if getattr(f, "skips", ()):
        arms["coarse"] = (replace(f, embedding=other.features.embedding), prompts, k)
    return arms | {"features": (other.features, prompts, k)}


def _score_arms(model: ULLSAM, x: ForwardTrace, arms: dict, ids: np.ndarray) -> dict[str, dict[str, float]]:
    """MEASURES of each arm, against the truth and the masks with own knowledge: means over the objects of one image."""
    parts = {name: [] for name in arms}
    for first in range(0, len(ids), _CHUNK):
        some = slice(first, first + _CHUNK)
        own = None
        for name, (features, prompts, knowledge) in arms.items():
            chunk = Prompts(prompts.points[:, some], prompts.labels[:, some])
            logits = from_square(model.segment(features, chunk, knowledge)[0][0, :, 0], x.square)  # (I, H, W)
            own = logits if own is None else own
            masks, before = logits > 0, own > 0
            differ = (masks != before).flatten(1).sum(1)
            either = (masks | before).flatten(1).sum(1).clamp_min(1)
            change = (logits - own).abs().flatten(1).mean(1)
            dice = instance_scores(masks.cpu().numpy(), x.sample.labels, ids[some])[0]
            measured = (v.float().cpu().numpy() for v in (change, differ / before[0].numel(), differ / either))
            parts[name].append(np.stack([dice, *measured]))  # (4, I)
    return {name: dict(zip(MEASURES, np.concatenate(p, 1).mean(1).tolist(), strict=True)) for name, p in parts.items()}


def change_masks(rows: Sequence[dict], seed: int) -> dict[str, dict]:
    """What becomes of the masks in each arm.

    Returns:
        For "own" and each of ARMS estimates of dice, mean over objects; dice_change, against the image's own knowledge;
        logit_change, mean absolute change of a pixel's mask logit; flipped, fraction of the image's pixels that change
        sides; moved, fraction of the union of both masks that only one of them has (1 - IoU).
    """
    found = {}
    for arm in ("own", *(name for name in ARMS if name in rows[0])):
        found[arm] = {key: estimate([row[arm][key] for row in rows], seed) for key in MEASURES}
        found[arm]["dice_change"] = estimate([row[arm]["dice"] - row["own"]["dice"] for row in rows], seed)
    return found


def sizes(model: ULLSAM, traces: Sequence[ForwardTrace], seed: int) -> dict[str, dict | float]:
    """How long the vectors are that meet in the mask decoder: mean length over the positions of an image.

    Returns:
        no_mask, the length of SAM's own dense prompt; estimates of features; dense, the dense prompt with knowledge;
        change, its difference to SAM's own; features_varying and dense_varying, their differences to their means over
        the image; ratio, change / features; click, the prompt tokens of a click; tokens, what knowledge adds to prompt
        tokens, as tokens of their own or to the click's, 0 where it adds nothing.
    """
    own, side = model.sam.prompt_encoder.no_mask_embed.weight, model.config.sam.patch_size  # (1, C)
    rows = []
    middle = torch.full((1, 1, 1, 2), model.config.sam.image_size / 2, device=model.device)
    click = Prompts(middle, torch.ones(1, 1, 1, device=model.device))
    for x in traces:
        sparse, grid = model.sam.embed(click, x.features)  # (1, P, C), (1, C, h, w)
        new, dense = model.vlsa.inject(x.knowledge, sparse, grid)
        h, w, left, top = (round(v * x.square.scale) for v in (x.square.height, x.square.width, *x.square.offset))
        image = slice(top // side, -(-(top + h) // side)), slice(left // side, -(-(left + w) // side))  # no padding
        features, dense, grid = (v[0, :, *image].flatten(1) for v in (x.features.embedding, dense, grid))  # (C, positions)
        vectors = {"features": features, "dense": dense, "change": dense - grid}
        vectors |= {f"{key}_varying": vectors[key] - vectors[key].mean(1, keepdim=True) for key in ("features", "dense")}
        lengths = {key: float(v.norm(dim=0).mean()) for key, v in vectors.items()}
        added = F.pad(-sparse, (0, 0, 0, new.shape[1] - sparse.shape[1])) + new
        added = added.norm(dim=2)[added.any(2)]
        lengths |= {"click": float(sparse.norm(dim=2).mean()), "tokens": float(added.mean()) if len(added) else 0.0}
        rows.append(lengths | {"ratio": lengths["change"] / lengths["features"]})
    return {"no_mask": float(own.norm()), **{key: estimate([row[key] for row in rows], seed) for key in rows[0]}}


def read(result: dict) -> dict[str, str]:
    """One sentence or two about each part, derived from the numbers alone: informative, used, size, power."""
    return {
        "informative": " ".join(_read_probe(name, found) for name, found in result["probes"].items()),
        "used": _read_masks(result["masks"]),
        "size": _read_sizes(result["sizes"], result["shares"]),
        "power": _read_power(result["power"]),
    }


def _read_probe(name: str, found: dict) -> str:
    steps, chance = found["steps"], found["chance"]
    told = steps["hidden"]["interval"] and steps["hidden"]["interval"][0] > chance
    sentence = (
        f"The language model's states {'tell' if told else 'do not tell'} "
        f"{'where objects are' if name == 'objects' else f'the {name}'} "
        f"({_span(steps['hidden'])}, chance {chance:.2f}; image features {_span(steps['features'])}"
        f"{', knowledge ' + _span(steps['knowledge']) if 'knowledge' in steps else ''})"
    )
    moved = [
        f"{'more' if e['mean'] > 0 else 'less'} from {STEP_NAMES[key]}"
        for key, e in found["changes"].items()
        if e["interval"] and (e["interval"][0] > 0 or e["interval"][1] < 0)
    ]
    return f"{sentence}; {'against the step before, ' + ', '.join(moved) if moved else 'no step changes it clearly'}."


def _is_small(change: dict) -> bool:
    """Whether a change of Dice is surely below SMALL."""
    return -SMALL < change["interval"][0] and change["interval"][1] < SMALL


def _read_masks(masks: dict) -> str:
    other, points, low_high = masks["other"], masks["points"], masks["other"]["dice_change"]["interval"]
    if _is_small(other["dice_change"]):
        start = "Masks hardly depend on whose knowledge it is"
    elif low_high[0] > 0 or low_high[1] < 0:
        start = f"Masks get {'better' if low_high[0] > 0 else 'worse'} with another image's knowledge"
    else:
        start = "It stays open whether masks depend on whose knowledge it is"
    changes = {arm: _span(found["dice_change"], "+.3f") for arm, found in masks.items()}
    coarse = "coarse" if "coarse" in masks else "features"  # without finer maps there are no other features
    return (
        f"{start}: another image's moves Dice by {changes['other']} and {_span(other['moved'], '.3f')} of the masks' "
        f"area, none at all moves Dice by {changes['none']}; new points on the same object move Dice by "
        f"{changes['points']} and {_span(points['moved'], '.3f')} of the area. "
        f"The decoder {'hardly uses' if _is_small(masks[coarse]['dice_change']) else 'uses'} the coarse image features, "
        f"which knowledge is added to: those of another image move Dice by {changes[coarse]} and "
        f"{_span(masks[coarse]['moved'], '.3f')} of the area."
    )


def _read_sizes(found: dict, varied: dict) -> str:
    constant, image = (varied["knowledge"][key] for key in ("constant", "image"))
    tokens = f" and prompt tokens by {_span(found['tokens'])}, a click's are {_span(found['click'])} long"
    return (
        f"Knowledge moves the dense prompt by {_span(found['ratio'])} times the length of the image features that it is "
        f"added to{tokens if found['tokens']['mean'] else ''}; {_span(constant)} of its mean square is the same for all "
        f"images and positions, {_span(image)} differs between images only. Image features are "
        f"{_span(found['features'], '.1f')} long and differ between the positions "
        f"of an image by {_span(found['features_varying'], '.1f')}."
    )


def _read_power(rows: Sequence[dict]) -> str:
    names = {"image tokens": "words before the image reach its tokens", "last word": "words after the image have states"}
    texts = []
    for states, what in names.items():
        last, given = [row for row in rows if row["states"] == states][-2:]
        parts = ", ".join(f"{name} {100 * last[name]:.2f} %" for name in last if name not in ("states", "layer"))
        texts.append(
            f"Where {what}, the last layer's power is {parts}; of what VLSA gets there, {100 * given['constant']:.2f} % is "
            f"constant and {100 * given['words']:.2f} % depends on the words."
        )
    return " ".join(texts)


def _span(e: dict, form: str = ".2f") -> str:
    """A mean with its interval in brackets."""
    return f"{e['mean']:{form}} [{e['interval'][0]:{form}}, {e['interval'][1]:{form}}]" if e["interval"] else "unknown"


def summarise_knowledge(results: Sequence[dict]) -> list[dict]:
    """Turn a result of `measure_knowledge` into rows for `format_table`: what becomes of the masks, arm by arm."""
    rows = []
    for arm, found in results[0]["masks"].items():
        row = {"in place of own knowledge": ARMS.get(arm, "own knowledge")}
        row |= {key: found[key]["mean"] for key in ("dice", "dice_change")}
        row |= {"95 %": "{:+.3f} to {:+.3f}".format(*found["dice_change"]["interval"])}
        rows.append(row | {key: found[key]["mean"] for key in MEASURES[1:]})
    return rows
