"""The open sets behind the shipped weights, rebuilt from their public repositories at a fixed commit.

open.json holds their facts, open_images.csv which image or crop became which file of which split. A mask is made as
`instance_rule` in the facts says, always on the finished crop.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ullsam.data.io import read_image, read_labels, to_rgb8
from ullsam.data.sources.convert import Item, instances, one_per_mask
from ullsam.data.sources.fetch import Dataset, Remote
from ullsam.errors import InputError

Arrays = tuple[np.ndarray, np.ndarray]
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
    """File name and item of every image of an open set, from its unpacked repository.

    Raises:
        InputError: the repository lacks an image.
    """
    with Path(__file__).with_name("open_images.csv").open(encoding="utf-8", newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["dataset"] == name]
    load = partial(_read, Files(root), *RULES[name])
    return [(row["file"], Item(row["source_id"], row["split"], row["note"], partial(load, row))) for row in rows]


def _read(files: Files, find: Callable, make: Callable, row: dict) -> Arrays:
    """The finished crop of a row of open_images.csv and its mask.

    A note such as "testA_1 y6x215" names the crop's upper left corner, one such as "scale=0.5" a smaller image; without
    either it is the whole image.
    """
    image, labels = find(files, row)
    note, size = row["note"], (int(row["height"]), int(row["width"]))
    if not note.startswith("scale="):
        corner = re.search(r"\by(\d+)x(\d+)$", note)
        y, x = (int(corner[1]), int(corner[2])) if corner else (0, 0)
        image, labels = (array[y : y + size[0], x : x + size[1]] for array in (image, labels))
        if image.shape[:2] != size:
            raise InputError(f"{note}: the image is too small for this crop; the repository is another version.")
    elif image.shape[:2] != size:
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
        labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return to_rgb8(image, note), make(labels)


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
            raise InputError(
                f"{self.root} has no file that ends with {pattern}; delete the folder and run the same command again."
            )
        return found[0]


# ---------------------------------------------------------------- where image and mask of a row are


def _id(row: dict) -> str:
    return re.escape(row["source_id"].split("/", 1)[1])


def _axons(files: Files, row: dict) -> Arrays:
    image = files.one(rf"/micr/{_id(row)}\.(?:png|tif)")
    return _grey(read_image(image)), _grey(read_image(files.one(rf"/{_id(row)}_seg-axon-manual\.png"))) > 127


def _bbbc039(files: Files, row: dict) -> Arrays:
    image, mask = files.one(rf"/images/{_id(row)}_.*\.tif"), read_image(files.one(rf"/masks/{_id(row)}_.*\.png"))
    return _stretch(read_image(image)), (mask if mask.ndim == 2 else mask[..., 0]).astype(np.int32)


def _dsb(files: Files, row: dict, stretch: bool = False, colour: bool = False) -> Arrays:
    start = _id(row) if row["note"].startswith("y") else row["note"]
    image = read_image(files.one(rf"/stage1_train/{start}[0-9a-f]*/images/[^/]*\.png"))[..., :3]
    labels = one_per_mask(image, files.all(rf"/stage1_train/{start}[0-9a-f]*/masks/[^/]*\.png"))
    image = image if colour else _grey(image)
    return _stretch(image) if stretch else image, labels


def _emps(files: Files, row: dict) -> Arrays:
    return _grey(read_image(files.one(rf"/images/{_id(row)}\.png"))), read_labels(files.one(rf"/segmaps/{_id(row)}\.png"))


def _usiigaci(files: Files, row: dict) -> Arrays:
    part, number = row["source_id"].split("/")[1].split("_")
    folder = rf"/Mask R-CNN/{part}/{number}"
    image = read_image(files.one(rf"{folder}/raw\.tif"))
    return _stretch(_grey(image)), read_labels(files.one(rf"{folder}/instances_ids\.png"))


def _vnc(files: Files, row: dict, mitochondria: bool) -> Arrays:
    z = int(row["source_id"].rsplit("z", 1)[1])
    image = _grey(read_image(files.one(rf"/stack1/raw/{z:02d}\.tif")))
    if mitochondria:
        return image, _grey(read_image(files.one(rf"/stack1/mitochondria/{z:02d}\.png"))) > 0
    return image, np.isin(_grey(read_image(files.one(rf"/stack1/labels/labels{z:08d}\.png"))), VNC_CELL)


def _busi(files: Files, row: dict) -> Arrays:
    image = _grey(read_image(files.one(rf"/images/{_id(row)}\.png")))
    return image, one_per_mask(image, files.all(rf"/mask/{_id(row)}_mask[_0-9]*\.png"))


def _glas(files: Files, row: dict) -> Arrays:
    name = row["note"].split(" ")[0]
    return read_image(files.one(rf"/GlaS/{name}\.bmp")), read_labels(files.one(rf"/GlaS/{name}_anno\.bmp"))


def _superalloy(files: Files, row: dict) -> Arrays:
    image = files.one(rf"/Super[12]/[^/]*/{re.escape(row['note'])}\.tif")
    mask = read_image(image.parent.with_name(f"{image.parent.name}_annot") / f"{image.stem}_mask.tif")
    return _grey(read_image(image)), (mask[..., 0] > 127) + 2 * (mask[..., 2] > 127).astype(np.int32)


def _grey(image: np.ndarray) -> np.ndarray:
    """One channel; of colours the mean that OpenCV takes."""
    return image if image.ndim == 2 else cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_RGB2GRAY)


def _stretch(image: np.ndarray) -> np.ndarray:
    """8 bits from the 0.3rd to the 99.8th percentile of the whole image."""
    low, high = np.percentile(image, (0.3, 99.8))
    return np.rint(np.clip((image - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8)


# set -> how image and mask of a row are found, and how a crop's instances are made of the mask
RULES = {
    "axondeepseg_sem": (_axons, partial(instances, min_area=20)),
    "bbbc039_u2os_nuclei": (_bbbc039, partial(instances, min_area=30)),
    "dsb2018_brightfield_smear": (_dsb, partial(instances, connectivity=2, min_area=12)),
    "dsb2018_fluorescence": (partial(_dsb, stretch=True), partial(instances, connectivity=2, min_area=12)),
    "emps_particles_em": (_emps, partial(instances, connectivity=2, min_area=12)),
    "usiigaci_phase_contrast": (_usiigaci, partial(instances, connectivity=2, min_area=30)),
    "vnc_mitochondria": (partial(_vnc, mitochondria=True), partial(instances, min_area=60)),
    "vnc_neurites": (partial(_vnc, mitochondria=False), partial(instances, min_area=150)),
    "busi_ultrasound": (_busi, partial(instances, connectivity=2, min_area=1)),
    "dsb2018_stained_tissue": (partial(_dsb, colour=True), partial(instances, connectivity=2, min_area=12)),
    "glas_glands": (_glas, partial(instances, connectivity=2, min_area=1)),
    "nasa_superalloy_sem": (_superalloy, partial(instances, min_area=15)),
}
