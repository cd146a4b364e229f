"""Synthetic microscopy with exact instance masks: named styles, deterministic by (style, seed, size)."""

import csv
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ullsam.data.corpus import Sample
from ullsam.data.synthetic import scenes
from ullsam.data.synthetic.parts import Pen
from ullsam.errors import InputError

ATTEMPTS = 16  # scenes painted before an empty one is accepted as an error


@dataclass(frozen=True)
class Style:
    """One kind of scene, a row of styles.csv.

    paint: Pen -> (image float32 (S, S) or (S, S, 3) about 0..1, labels int32 (S, S)), S the side in pixels.
    meta: name, domain, modality, specimen, structure, description as in a meta.json, and synthetic True.
    """

    paint: Callable[[Pen], scenes.Scene]
    meta: dict


with Path(__file__).with_name("styles.csv").open(encoding="utf-8", newline="") as rows:
    STYLES = {
        row["name"]: Style(
            getattr(scenes, row.pop("painter")), row | {"name": f"synthetic_{row['name']}", "synthetic": True}
        )
        for row in csv.DictReader(rows)
    }
PICTURES = {name: style for name, style in STYLES.items() if style.meta["domain"] != "drawing"}  # imitate real images


def generate(style: str, seed: int, size: int = 256) -> Sample:
    """Paint one synthetic image with its exact instance masks.

    Args:
        style: a key of STYLES.
        seed: not negative; the same (style, seed, size) gives the same bytes.
        size: side S of the square view in pixels, at least 64.

    Returns:
        Sample with image uint8 (S, S, 3) and labels int32 (S, S): 0 background, instances 1..n (n > 0),
        each one 4-connected piece of at least 12 pixels; meta is a copy of the style's.
    """
    if style not in STYLES:
        raise InputError(f"there is no synthetic style {style!r}; use one of {', '.join(STYLES)}.")
    if seed < 0:
        raise InputError(f"seed is {seed}; give a whole number of 0 or more.")
    if size < 64:
        raise InputError(f"size is {size} pixels; give 64 or more.")
    rng = np.random.default_rng([zlib.crc32(style.encode()), int(seed), int(size)])
    for _ in range(ATTEMPTS):
        image, labels = STYLES[style].paint(Pen(rng, size))
        if labels.any():
            break
    else:
        raise InputError(f"style {style!r} found no room for an object at size {size}; give a larger size.")
    curve = np.round(255 * np.linspace(0, 1, 256) ** rng.uniform(0.75, 1.3)).astype(np.uint8)  # a random tone curve
    image = cv2.LUT(np.clip(image * 255, 0, 255).astype(np.uint8), curve)
    image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image
    return Sample(image, labels, dict(STYLES[style].meta), f"synthetic_{style}/{seed}")
