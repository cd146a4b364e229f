"""Synthetic microscopy with exact instance masks: named styles, deterministic by (style, seed, size)."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from ullsam.data.corpus import Sample
from ullsam.data.synthetic import scenes, textures
from ullsam.data.synthetic.parts import Pen
from ullsam.errors import InputError

ATTEMPTS = 16  # scenes painted before an empty one is accepted as an error


@dataclass(frozen=True)
class Style:
    """One kind of scene.

    paint: Pen -> (image float32 (S, S) or (S, S, 3) about 0..1, labels int32 (S, S)), S the side in pixels.
    meta: name, domain, modality, specimen, structure, description as in a meta.json, and synthetic True.
    """

    paint: Callable[[Pen], scenes.Scene]
    meta: dict


def _styles() -> dict[str, Style]:
    """The table of all styles: painter, domain, modality, specimen, structure, and what the picture shows."""
    sem, tem = "scanning electron microscopy (SEM)", "transmission electron microscopy (TEM)"
    axon = "axon (inside of the myelin sheath)"
    rows = {
        "fluorescence_nuclei": (
            scenes.fluorescence,
            "LM",
            "fluorescence microscopy",
            "cultured cells",
            "nucleus",
            "fluorescence micrograph of bright stained nuclei on a dark ground",
        ),
        "phase_contrast_cells": (
            scenes.phase_contrast,
            "LM",
            "phase-contrast microscopy",
            "adherent cell culture",
            "cell",
            "phase-contrast micrograph of spread cells with bright halos on a gray ground",
        ),
        "brightfield_smear": (
            scenes.smear,
            "LM",
            "brightfield microscopy",
            "stained cell smear",
            "nucleus",
            "brightfield micrograph of a smear with small dark nuclei in pale cytoplasm",
        ),
        "brightfield_bacteria": (
            scenes.bacteria,
            "LM",
            "brightfield microscopy",
            "bacterial culture",
            "bacterium",
            "brightfield micrograph of dark rod-shaped bacteria on a light ground",
        ),
        "em_mitochondria": (
            scenes.mitochondria,
            "EM",
            tem,
            "nerve tissue",
            "mitochondrion",
            "electron micrograph of dark oval mitochondria with cristae in nerve tissue",
        ),
        "em_neurites": (
            scenes.neurites,
            "EM",
            tem,
            "nerve tissue",
            "neurite cross-section",
            "electron micrograph of neurite cross-sections bounded by dark membranes",
        ),
        "sem_particles": (
            scenes.sem_particles,
            "EM",
            sem,
            "particulate material",
            "particle",
            "scanning electron micrograph of bright, shaded particles on a darker support",
        ),
        "tem_particles": (
            scenes.tem_particles,
            "EM",
            tem,
            "particulate material",
            "particle",
            "transmission electron micrograph of dark particles on a light film",
        ),
        "sem_axons": (
            scenes.sem_axons,
            "EM",
            sem,
            "white matter",
            axon,
            "scanning electron micrograph of dark axons in bright myelin sheaths",
        ),
        "tem_axons": (
            scenes.tem_axons,
            "EM",
            tem,
            "white matter",
            axon,
            "transmission electron micrograph of light axons in dark myelin sheaths",
        ),
        "histology_nuclei": (
            scenes.histology,
            "histopathology",
            "brightfield microscopy, H&E stain",
            "stained tissue section",
            "nucleus",
            "H&E-stained tissue section with purple nuclei in pink tissue",
        ),
        "ultrasound_lesion": (
            scenes.ultrasound,
            "medical",
            "B-mode ultrasound",
            "soft tissue",
            "lesion",
            "ultrasound image of soft tissue with dark lesions in speckle",
        ),
        "shapes": (
            textures.shapes,
            "drawing",
            "computer drawing",
            "random texture",
            "drawn body",
            "drawing of random bodies on a random ground",
        ),
        "packed_shapes": (
            textures.packed_shapes,
            "drawing",
            "computer drawing",
            "random texture",
            "drawn body",
            "drawing of random bodies that touch",
        ),
    }
    return {name: _style(name, *row) for name, row in rows.items()}


def _style(name: str, paint: Callable, *words: str) -> Style:
    domain, modality, specimen, structure, shows = words
    facts = {"domain": domain, "modality": modality, "specimen": specimen, "structure": structure}
    return Style(paint, {"name": f"synthetic_{name}", **facts, "description": f"Synthetic {shows}.", "synthetic": True})


STYLES: dict[str, Style] = _styles()
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

    Raises:
        InputError: the style is unknown, the seed negative or the size too small.
    """
    _check(style, seed, size)
    rng = np.random.default_rng([zlib.crc32(style.encode()), int(seed), int(size)])
    for _ in range(ATTEMPTS):
        image, labels = STYLES[style].paint(Pen(rng, size))
        if labels.any():
            break
    else:
        raise InputError(f"style {style!r} found no room for an object at size {size}; give a larger size.")
    return Sample(_develop(image, rng), labels, dict(STYLES[style].meta), f"synthetic_{style}/{seed}")


def _check(style: str, seed: int, size: int) -> None:
    if style not in STYLES:
        raise InputError(f"there is no synthetic style {style!r}; use one of {', '.join(STYLES)}.")
    if seed < 0:
        raise InputError(f"seed is {seed}; give a whole number of 0 or more.")
    if size < 64:
        raise InputError(f"size is {size} pixels; give 64 or more.")


def _develop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn a scene of about 0..1 into uint8 (S, S, 3) with a random tone curve."""
    curve = 255 * np.linspace(0, 1, 256) ** rng.uniform(0.75, 1.3)
    shown = cv2.LUT(np.clip(image * 255, 0, 255).astype(np.uint8), np.round(curve).astype(np.uint8))
    return cv2.cvtColor(shown, cv2.COLOR_GRAY2RGB) if shown.ndim == 2 else shown
