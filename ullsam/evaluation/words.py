"""Does a variant carry a word from the language model to the mask? One click that can mean two things, and words.

Image features and the language model's states do not change while a variant is trained (the encoder and the language model
are frozen), so they are computed once and kept; what is trained are the variant and SAM's mask decoder. Everything is
measured on the model's canvas of S x S pixels. Letters: B images, I objects, N image tokens, T words' tokens, D LLM width.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ullsam.variants  # noqa: F401  makes them known
from ullsam.config import TrainConfig
from ullsam.data.referring import NamedScene, Referral, draw_absent, draw_ambiguous, draw_union, phrases
from ullsam.losses import mask_losses, presence_logit
from ullsam.model import ULLSAM
from ullsam.train import learning_rate
from ullsam.types import ImageFeatures, LanguageStates, Prompts
from ullsam.vlsa import CentredStates, VlsaShape, build_vlsa, inject_knowledge

TRAIN = TrainConfig(steps=300, batch_size=8, lr=2e-4, vlsa_lr_scale=10.0, warmup=20, final_lr=0.0)
MOST_ABSENT = 4  # structures that are not there, of each image
PRESENCE = 0.2  # weight of the loss that says whether there is anything
MIX = {"click": 0.65, "words": 0.2, "absent": 0.15}  # of the requests in training


@dataclass(frozen=True)
class Arm:
    """One training: a variant and what it is told."""

    variant: str  # "none" is SAM without words
    options: dict = field(default_factory=dict)
    centred: bool = True  # states without their running mean
    words: str = "right"  # in training: "right", "shuffled" (of any structure in the image) or "constant" (none)


@dataclass(frozen=True)
class Request:
    """A click or none, on an image, and what the words mean there."""

    scene: int
    task: str  # "click", "words" or "absent"
    referral: Referral


class Scenes:
    """Images with their features and with the language model's states for some phrases of each, kept in 16 bits.

    Args:
        model: gives features and states; its VLSA plays no part.
        scenes: images in which things can be named.
        count: phrases of each structure and image; one of them where words stand before the image, which is then read again.
        held_out: whether phrases that are kept back from training are wanted, too.
        seed: of the choice of phrases.
    """

    def __init__(self, model: ULLSAM, scenes: Sequence[NamedScene], count: int = 6, held_out: bool = True, seed: int = 0):
        self.model, self.scenes = model, list(scenes)
        self.side, depth = model.config.sam.image_size, model.llm.lm.config.num_hidden_layers
        self.layers = tuple(sorted({max(1, depth // 3), max(1, 2 * depth // 3)}))  # kept for variants that ask for them
        self.features: list[ImageFeatures] = []
        self.squares, self.tokens, self.states, self.texts, self.images = [], [], {}, {}, {}
        for index in range(len(self.scenes)):
            self._add(index, count, held_out, np.random.default_rng([seed, index]))

    @torch.inference_mode()
    def _add(self, index: int, count: int, held_out: bool, rng: np.random.Generator) -> None:
        scene = self.scenes[index]
        pixels, (square,) = self.model.preprocess([scene.image])
        features = self.model.encode(pixels)
        tokens = self.model.image_tokens(features)
        self.features.append(_half(features))
        self.squares.append(square)
        self.tokens.append(tokens.half())
        absent = [scene.absent[i] for i in rng.permutation(len(scene.absent))[:MOST_ABSENT]]
        for key, kept_back in itertools.product([*scene.structures, *absent], (False, True)[: 1 + held_out]):
            some = phrases(key, kept_back, ("train", "described") if key in scene.structures else ("train",))
            chosen = [some[i] for i in rng.permutation(len(some))[:count]]
            self.texts[index, "after", key, kept_back], self.texts[index, "before", key, kept_back] = chosen, chosen[:1]
        memory = self.model.llm.remember(tokens, self.layers)
        texts = list(
            dict.fromkeys(x for (i, place, *_), some in self.texts.items() if (i, place) == (index, "after") for x in some)
        )
        for some in ([None], *(texts[first : first + 16] for first in range(0, len(texts), 16))):
            self._keep(index, "after", some, self.model.llm.read(tokens, some, "after", self.layers, memory))

    @torch.inference_mode()
    def state(self, index: int, place: str, text: str | None) -> LanguageStates:
        """States of one image with one text; those with the words before it are read when they are first wanted."""
        if (index, place, text) not in self.states:
            self._keep(index, place, [text], self.model.llm.read(self.tokens[index].float(), [text], place))
        return self.states[index, place, text]

    def _keep(self, index: int, place: str, texts: Sequence[str | None], read: LanguageStates) -> None:
        """States of one image with several texts, kept one by one; those of the image itself once, where words follow it."""
        for i, text in enumerate(texts):
            n = int(read.valid[i].sum())
            one = read.map(
                lambda name, x, i=i, n=n: x[i : i + 1, :n].half() if name.startswith("words") else x[i : i + 1].half()
            )
            one = replace(one, valid=read.valid[i : i + 1, :n], texts=(text,))
            one = replace(one, layers={k: replace(x, valid=one.valid, texts=one.texts) for k, x in one.layers.items()})
            if place == "after":
                image = self.images.setdefault(index, one)
                one = replace(
                    one,
                    image=image.image,
                    layers={k: replace(x, image=image.layers[k].image) for k, x in one.layers.items()},
                )
            self.states[index, place, text] = one

    def draw(self, rng: np.random.Generator, task: str, index: int | None = None, held_out: bool = False) -> Request | None:
        """One request about image `index`, or about any image that has one."""
        for _ in range(50 if index is None else 1):
            i = int(rng.integers(len(self.scenes))) if index is None else index
            scene = self.scenes[i]
            known = tuple(k for k in scene.absent if (i, "after", k, False) in self.texts)
            if task == "click":
                found = draw_ambiguous(scene, rng)
            elif task == "words":
                found = draw_union(scene, rng)
            else:
                found = draw_absent(replace(scene, absent=known), rng, click=bool(rng.integers(2)))
            if found is not None:
                return Request(i, task, found)
        return None

    def text(self, request: Request, place: str, key: str | None, rng: np.random.Generator, held_out: bool = False):
        """One of the kept phrases for a structure; None for no words."""
        some = self.texts.get((request.scene, place, key, held_out))
        return some[rng.integers(len(some))] if some else None

    def batch(self, requests: Sequence[Request], texts: Sequence[str | None], place: str, rng=None):
        """Features, prompts, states and true masks (B, S, S) of requests, one object each.

        With `rng` they are of a window of half the canvas around the click or, without one, around a part of what is meant:
        a quarter of the work for the decoder.
        """
        features = _together([self.features[r.scene] for r in requests])
        points, labels, truth = zip(*(self._prompt(r) for r in requests), strict=True)
        prompts = Prompts(torch.tensor(np.stack(points))[:, None], torch.tensor(labels)[:, None, None])
        states = _stack([self.state(r.scene, place, text) for r, text in zip(requests, texts, strict=True)])
        truth = torch.from_numpy(np.stack(truth)).float()
        if rng is None:
            return features, prompts, states, truth
        return _windows(features, prompts, states, truth, rng)

    def _prompt(self, request: Request):
        square, asked = self.squares[request.scene], request.referral
        size = (round(square.width * square.scale), round(square.height * square.scale))
        x0, y0 = (round(v * square.scale) for v in square.offset)
        truth = np.zeros((self.side, self.side), np.float32)
        truth[y0 : y0 + size[1], x0 : x0 + size[0]] = cv2.resize(
            asked.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT
        )
        if asked.point is None:
            return np.zeros((1, 2), np.float32), -1.0, truth
        return square.points_in(np.array([asked.point])), 1.0, truth


def _half(features: ImageFeatures) -> ImageFeatures:
    skips = {"skips": tuple(x.half() for x in features.skips), "summary": None} if hasattr(features, "skips") else {}
    return replace(features, embedding=features.embedding.half(), states=None, **skips)


def _together(features: Sequence[ImageFeatures]) -> ImageFeatures:
    skips = {}
    if hasattr(features[0], "skips"):
        skips = {"skips": tuple(torch.cat(x).float() for x in zip(*(f.skips for f in features), strict=True))}
    return replace(features[0], embedding=torch.cat([f.embedding for f in features]).float(), **skips)


def _stack(states: Sequence[LanguageStates]) -> LanguageStates:
    """States of single images as those of a batch, words padded on the right."""
    length = max(s.words.shape[1] for s in states)

    def pad(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, length - x.shape[1]))

    valid = torch.cat([F.pad(s.valid, (0, length - s.valid.shape[1])) for s in states])
    layers = {n: _stack([s.layers[n] for s in states]) for n in states[0].layers}
    image, words = torch.cat([s.image for s in states]).float(), torch.cat([pad(s.words) for s in states]).float()
    return LanguageStates(image, words, valid, sum((s.texts for s in states), ()), layers)


def _windows(features: ImageFeatures, prompts: Prompts, states: LanguageStates, truth: Tensor, rng: np.random.Generator):
    """Half as wide windows of everything, each in its own place of the image, all at one place of the canvas."""
    grid = features.embedding.shape[-1]  # of the whole canvas, in patches
    half, patch = grid // 2, truth.shape[-1] // grid
    corners, points = [], prompts.points.clone()
    for i, (point, label) in enumerate(zip(points[:, 0, 0], prompts.labels[:, 0, 0], strict=True)):
        spots = torch.nonzero(truth[i])
        if label < 0:
            point = (
                spots[int(rng.integers(len(spots)))].flip(0)
                if len(spots)
                else torch.from_numpy(rng.random(2) * grid * patch)
            )
        lowest = (point / patch - half + 1).clamp(0, half).ceil().int()  # the windows that hold the point
        highest = (point / patch).clamp(0, half).floor().int()
        corners.append([2 * int(rng.integers(a // 2, max(a, b) // 2 + 1)) for a, b in zip(lowest, highest, strict=True)])
    origin = tuple(2 * int(x) for x in rng.integers(0, half // 2 + 1, 2))

    def cut(x: Tensor, scale: float) -> Tensor:  # (B, ..., s*grid, s*grid)
        n = round(half * scale)
        pieces = [
            y[..., round(t * scale) : round(t * scale) + n, round(f * scale) : round(f * scale) + n]
            for y, (f, t) in zip(x, corners, strict=True)
        ]
        return torch.stack(pieces)

    def tokens(name: str, x: Tensor) -> Tensor:
        if name.startswith("words"):
            return x
        side = round(x.shape[1] ** 0.5)
        return cut(x.transpose(1, 2).unflatten(2, (side, side)), side / grid).flatten(2).transpose(1, 2)

    skips = {"skips": tuple(cut(x, x.shape[-1] / grid) for x in features.skips)} if hasattr(features, "skips") else {}
    features = replace(features, embedding=cut(features.embedding, 1), origin=origin, **skips)
    points -= torch.tensor(corners)[:, None, None] * patch
    return features, Prompts(points, prompts.labels), states.map(tokens), cut(truth, patch)


class Trained(nn.Module):
    """SAM's decoder with a variant, on kept features and states."""

    def __init__(self, model: ULLSAM, arm: Arm, seed: int):
        super().__init__()
        c = model.config
        self.sam = copy.deepcopy(model.sam).requires_grad_(False)
        self.sam.mask_decoder.requires_grad_(True)
        shape = VlsaShape(model.llm.dim, c.sam.out_chans, (c.sam.grid, c.sam.grid), c.shuffle_ratio)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.vlsa = None if arm.variant == "none" else build_vlsa(arm.variant, shape, **arm.options)
        self.place = "after" if self.vlsa is None else self.vlsa.reads
        layers = () if self.vlsa is None else self.vlsa.layers
        self.centre = CentredStates(model.llm.dim, tuple(layers)) if arm.centred else nn.Identity()

    def forward(self, features: ImageFeatures, prompts: Prompts, states: LanguageStates) -> Tensor:
        """Mask logits (B, 4h, 4w)."""
        knowledge = None
        if self.vlsa is not None:
            states = replace(states, layers={n: states.layers[n] for n in self.vlsa.layers})
            knowledge = self.vlsa(self.centre(states))
        sparse, dense = inject_knowledge(self.vlsa, knowledge, *self.sam.embed(prompts, features))
        return self.sam.decode(features, sparse, dense, prompts)[0][:, 0]


def train_arm(
    data: Scenes, arm: Arm, seed: int = 0, config: TrainConfig = TRAIN, on_log: Callable[[dict], None] | None = None
) -> Trained:
    """Trains one arm; the order of images, clicks and tasks is the same for all arms of a seed."""
    net = Trained(data.model, arm, seed).train()
    decoder = [p for p in net.sam.parameters() if p.requires_grad]
    variant = [] if net.vlsa is None else [p for p in net.vlsa.parameters() if p.requires_grad]
    groups = [{"params": decoder, "factor": 1.0}, {"params": variant, "factor": config.vlsa_lr_scale}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, weight_decay=config.weight_decay)
    rng, choice = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    start = time.perf_counter()
    for step in range(config.steps):
        tasks = rng.choice(list(MIX), config.batch_size, p=list(MIX.values()))
        requests = [r for task in tasks if (r := data.draw(rng, task)) is not None]
        texts = [_told(data, r, arm, net.place, choice) for r in requests]
        features, prompts, states, truth = data.batch(requests, texts, net.place, rng)
        logits = net(features, prompts, states)
        losses = mask_losses(logits, truth, torch.ones(len(requests)))
        there = truth.flatten(1).any(1).float()
        losses["presence"] = F.binary_cross_entropy_with_logits(presence_logit(logits), there)
        (losses["bce"] + losses["dice"] + PRESENCE * losses["presence"]).backward()
        nn.utils.clip_grad_norm_(decoder + variant, config.clip)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * group["factor"] * learning_rate(step, config)
        optimizer.step()
        optimizer.zero_grad()
        if on_log and (step + 1) % config.log_every == 0:
            values = {k: round(v.item(), 4) for k, v in losses.items()}
            on_log({"step": step + 1, "seconds": round(time.perf_counter() - start, 1), **values})
    return net.eval()


def _told(data: Scenes, request: Request, arm: Arm, place: str, rng: np.random.Generator) -> str | None:
    key = request.referral.key
    if arm.words == "constant":
        return None
    if arm.words == "shuffled":
        known = [k for i, p, k, held in data.texts if i == request.scene and p == place and not held]
        key = known[rng.integers(len(known))]
    return data.text(request, place, key, rng)


def test_requests(data: Scenes, per_image: int = 4, seed: int = 0) -> list[Request]:
    """Up to `per_image` requests of each task for each image."""
    found = []
    for index in range(len(data.scenes)):
        rng = np.random.default_rng([seed, 7, index])
        for task, count in (("click", per_image), ("words", 2), ("absent", 2)):
            found += [r for _ in range(count) if (r := data.draw(rng, task, index)) is not None]
    return found


@torch.inference_mode()
def score_arm(data: Scenes, net: Trained, requests: Sequence[Request], seed: int = 0, size: int = 8) -> list[dict]:
    """What becomes of each request with the right words (seen and held-out phrases), with those of the other meaning, and
    with none.

    Returns:
        One row per request: scene, source, task, key, and for each condition right, held_out, other, none the Dice with the
        mask that is right for the right words, and presence_<condition>.
    """
    rows = [
        {"scene": data.scenes[r.scene].name, "source": data.scenes[r.scene].source, "task": r.task, "key": r.referral.key,
         "click": r.referral.point is not None}
        for r in requests
    ]  # fmt: skip
    for condition in ("right", "held_out", "other", "none"):
        rng = np.random.default_rng([seed, 8])
        texts, chosen = [], []
        for i, r in enumerate(requests):
            key = {"other": r.referral.other, "none": None}.get(condition, r.referral.key)
            text = data.text(r, net.place, key, rng, condition == "held_out")
            if text is not None or condition == "none":
                texts.append(text)
                chosen.append(i)
        for first in range(0, len(chosen), size):
            some = chosen[first : first + size]
            features, prompts, states, truth = data.batch(
                [requests[i] for i in some], texts[first : first + size], net.place
            )
            logits = net(features, prompts, states)
            masks = F.interpolate(logits[:, None], truth.shape[1:], mode="bilinear", align_corners=False)[:, 0] > 0
            truth = truth > 0.5
            overlap, total = (masks & truth).flatten(1).sum(1), masks.flatten(1).sum(1) + truth.flatten(1).sum(1)
            dice = torch.where(total > 0, 2 * overlap / total.clamp(min=1), 1.0)
            present = presence_logit(logits).sigmoid()
            for i, d, p in zip(some, dice.tolist(), present.tolist(), strict=True):
                rows[i] |= {condition: d, f"presence_{condition}": p}
    return rows
