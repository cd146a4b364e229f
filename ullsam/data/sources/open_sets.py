"""The open sets behind the shipped weights, rebuilt from their public repositories at a fixed commit.

open.json holds their facts, open_images.csv which image or crop became which file of which split. A mask is made as
`instance_rule` in the facts says, always on the finished crop.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ullsam.data.io import read_image, read_labels, to_rgb8
from ullsam.data.sources.convert import Item, instances, one_per_mask
from ullsam.data.sources.fetch import Dataset, Remote
from ullsam.errors import InputError

VNC_CELL = (191, 223, 255)  # mitochondria, synapse, intracellular
FACTS = {row["name"]: row for row in json.loads(Path(__file__).with_name("open.json").read_text(encoding="utf-8"))}


def open_names(role: str | None = None) -> list[str]:
    """The names of the open sets, of one role or all."""
    return [name for name, facts in FACTS.items() if role in (None, facts["role"])]


def open_dataset(name: str) -> tuple[Dataset, dict]:
    """The row of an open set, its address being the repository's archive at its commit, and all its facts."""
    facts = FACTS[name]
    source = facts["source"]
    repository, commit = source["repo"].removeprefix("github:"), source["commit"]
    archive = Remote(f"https://github.com/{repository}/archive/{commit}.zip", f"{repository.split('/')[1]}.zip")
    same = ("name", "role", "domain", "modality", "specimen", "structure", "description", "licence")
    row = Dataset(
        **{key: facts[key] for key in same},
        title=source["original"],
        citation=source["paper"],
        address=f"https://github.com/{repository}/tree/{commit}",
        files=(archive,),
        warning=facts["licence_note"],
    )
    return row, facts


def read_open(name: str, root: Path) -> list[tuple[str, Item]]:
    """File name and item of every image of an open set, from its unpacked repository."""
    with Path(__file__).with_name("open_images.csv").open(encoding="utf-8", newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["dataset"] == name]
    load = partial(_read, Files(root), RULES[name])
    return [(row["file"], Item(row["source_id"], row["split"], row["note"], partial(load, row))) for row in rows]


def _read(files: Files, rule: Rule, row: dict) -> tuple[np.ndarray, np.ndarray]:
    """The finished crop of a row of open_images.csv and its mask.

    A note such as "testA_1 y6x215" names the crop's upper left corner, one such as "scale=0.5" a smaller image; without
    either it is the whole image.
    """
    note, size, own = row["note"], (int(row["height"]), int(row["width"])), row["source_id"].split("/", 1)[1]
    words = {"id": own, "note": note, "first": note.split(" ")[0], "start": own if note.startswith("y") else note}
    words = {key: re.escape(text) for key, text in words.items()} | {"folder": own.replace("_", "/"), "z": own[-2:]}
    path = files.one(rule.image.format(**words))
    pattern = rule.masks.format(**words, beside=re.escape(path.parent.relative_to(files.root).as_posix()))
    image = read_image(path) if rule.colour else _grey(read_image(path))
    labels = rule.ids(files.one(pattern)) if rule.ids else one_per_mask(image, files.all(pattern))
    if rule.stretch:  # to 8 bits from the 0.3rd to the 99.8th percentile of the whole image
        low, high = np.percentile(image, (0.3, 99.8))
        image = np.rint(np.clip((image - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8)
    if not note.startswith("scale="):
        corner = re.search(r"\by(\d+)x(\d+)$", note)
        y, x = (int(corner[1]), int(corner[2])) if corner else (0, 0)
        image, labels = (array[y : y + size[0], x : x + size[1]] for array in (image, labels))
        if image.shape[:2] != size:
            raise InputError(f"{note}: the image is too small for this crop; the repository is another version.")
    elif image.shape[:2] != size:
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
        labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return to_rgb8(image, note), instances(labels, rule.min_area, rule.connectivity)


class Files:
    """The files of an unpacked repository, found by the end of their path."""

    def __init__(self, root: Path):
        self.root = root
        self.paths = {f"/{path.relative_to(root).as_posix()}": path for path in root.rglob("*.*") if path.is_file()}

    def all(self, pattern: str) -> list[Path]:
        """Files whose path ends with a regular expression, sorted."""
        found = re.compile(pattern + "$")
        return sorted(path for text, path in self.paths.items() if found.search(text))

    def one(self, pattern: str) -> Path:
        """The first of them; an InputError where there is none."""
        if not (found := self.all(pattern)):
            remedy = "delete the folder and run the same command again"
            raise InputError(f"{self.root} has no file that ends with {pattern}; {remedy}.")
        return found[0]


def _grey(image: np.ndarray) -> np.ndarray:
    """One channel; of colours the mean that OpenCV takes."""
    return image if image.ndim == 2 else cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_RGB2GRAY)


def _brighter(path: Path, level: int) -> np.ndarray:
    return _grey(read_image(path)) > level


def _first_channel(path: Path) -> np.ndarray:
    mask = read_image(path)
    return (mask if mask.ndim == 2 else mask[..., 0]).astype(np.int32)


def _vnc_cells(path: Path) -> np.ndarray:
    return np.isin(_grey(read_image(path)), VNC_CELL)


def _two_colours(path: Path) -> np.ndarray:
    mask = read_image(path)
    return (mask[..., 0] > 127) + 2 * (mask[..., 2] > 127).astype(np.int32)


@dataclass(frozen=True)
class Rule:
    """How image and mask of a row are found and read, and how a crop's instances are made of the mask.

    The two expressions may name the row's {id}, its {note}, the {first} word of that, the {start} of a name in the DSB, a
    {folder} or slice {z} made of the id, and for masks the folder {beside} which they lie, the image's.
    """

    image: str  # regular expression for the end of the path
    masks: str
    ids: Callable[[Path], np.ndarray] | None = None  # of a mask file; None: one file for each instance
    min_area: int = 12  # pixels of a crop; smaller pieces are left out
    connectivity: int = 2  # 1 joins 4 neighbours, 2 joins 8
    colour: bool = False
    stretch: bool = False


DSB = (r"/stage1_train/{start}[0-9a-f]*/images/[^/]*\.png", r"/stage1_train/{start}[0-9a-f]*/masks/[^/]*\.png")
USIIGACI = (r"/Mask R-CNN/{folder}/raw\.tif", r"/Mask R-CNN/{folder}/instances_ids\.png")
VNC = r"/stack1/raw/{z}\.tif"
RULES = {
    "axondeepseg_sem": Rule(r"/micr/{id}\.(?:png|tif)", r"/{id}_seg-axon-manual\.png", partial(_brighter, level=127), 20, 1),
    "bbbc039_u2os_nuclei": Rule(r"/images/{id}_.*\.tif", r"/masks/{id}_.*\.png", _first_channel, 30, 1, stretch=True),
    "dsb2018_brightfield_smear": Rule(*DSB),
    "dsb2018_fluorescence": Rule(*DSB, stretch=True),
    "emps_particles_em": Rule(r"/images/{id}\.png", r"/segmaps/{id}\.png", read_labels),
    "usiigaci_phase_contrast": Rule(*USIIGACI, read_labels, 30, stretch=True),
    "vnc_mitochondria": Rule(VNC, r"/stack1/mitochondria/{z}\.png", partial(_brighter, level=0), 60, 1),
    "vnc_neurites": Rule(VNC, r"/stack1/labels/labels000000{z}\.png", _vnc_cells, 150, 1),
    "busi_ultrasound": Rule(r"/images/{id}\.png", r"/mask/{id}_mask[_0-9]*\.png", min_area=1),
    "dsb2018_stained_tissue": Rule(*DSB, colour=True),
    "glas_glands": Rule(r"/GlaS/{first}\.bmp", r"/GlaS/{first}_anno\.bmp", read_labels, 1, colour=True),
    "nasa_superalloy_sem": Rule(r"/Super[12]/[^/]*/{note}\.tif", r"{beside}_annot/{note}_mask\.tif", _two_colours, 15, 1),
}
