"""A folder of images with instance masks: images/, masks/, images.csv and meta.json."""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from ullsam.data.io import IMAGE_SUFFIXES, read_image, read_labels, read_lines, to_rgb8
from ullsam.data.text import read_text
from ullsam.errors import InputError
from ullsam.files import read_json

T = TypeVar("T")


@dataclass
class Sample:
    """One image with its instances."""

    image: np.ndarray  # uint8 (H, W, 3)
    labels: np.ndarray  # int32 (H, W), 0 background
    meta: dict = field(default_factory=dict)  # the dataset's facts
    name: str = ""


@dataclass(frozen=True)
class Record:
    """One line of images.csv with the paths of its two files."""

    file: str
    source_id: str | None
    split: str | None
    image_path: Path
    mask_path: Path


class Corpus:
    """One dataset folder.

    Without images.csv every file of images/ is a record of split None, without meta.json `meta` is empty.

    Args:
        folder: holds images/ and masks/ with files of the same names.

    Raises:
        InputError: the folder, its images or a column is missing, or a file of facts cannot be read.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        meta = self.folder / "meta.json"
        try:
            if not (self.folder / "images").is_dir():
                raise InputError(f"{self.folder} has no folder images/; give a folder with images/ and masks/.")
            self.meta = read_json(meta, "correct or remove it") if meta.is_file() else {}
            self.captions = _read_captions(self.folder / "captions.jsonl")
            self.records = [self._record(row) for row in read_table(self.folder)]
        except OSError as error:
            place = f"{error.filename or self.folder} ({error.strerror})"
            raise InputError(f"{self.folder} cannot be read: {place}; check its names and permissions.") from error
        self.name = str(self.meta.get("name") or self.folder.resolve().name)
        if not self.records:
            raise InputError(f"{self.folder} has no images; put png, jpg, tif or bmp files in images/.")

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {len(self)} images)"

    @property
    def splits(self) -> list[str]:
        """The names of the splits, sorted."""
        return sorted({record.split for record in self.records if record.split is not None})

    def select(self, split: str | None) -> list[Record]:
        """Return the records of one split, or all of them for None; an InputError where no record has this split."""
        if split is None:
            return list(self.records)
        chosen = [record for record in self.records if record.split == split]
        if not chosen:
            known = ", ".join(self.splits) or "none, use split None"
            raise InputError(f"{self.name} has no split {split!r}; the splits that exist: {known}.")
        return chosen

    def read(self, record: Record) -> Sample:
        """Read the image and the mask of one record; an InputError where that fails, or the two sizes differ.

        Returns:
            Sample whose meta is the corpus's meta with the record's file, source_id and split, and its `caption` where
            captions.jsonl has one.
        """
        image = to_rgb8(read_image(record.image_path, page=None), str(record.image_path))
        path, mask = record.image_path, record.mask_path
        if not mask.is_file():
            raise InputError(f"{mask} is missing, the mask of {path}; put a mask of the same name in masks/.")
        labels = read_labels(mask)
        if labels.shape != image.shape[:2]:
            size, mask_size = (f"{array.shape[1]} x {array.shape[0]}" for array in (image, labels))
            raise InputError(f"{mask} has {mask_size} pixels but {path} has {size}; make both the same size.")
        facts = {"file": record.file, "source_id": record.source_id, "split": record.split}
        if record.file in self.captions:
            facts["caption"] = self.captions[record.file]
        return Sample(image, labels, {**self.meta, **facts}, f"{self.name}/{Path(record.file).with_suffix('')}")

    def _record(self, row: dict) -> Record:
        """The mask lies in masks/ as the image in images/, with the same name or with the ending of another format."""
        file, images, masks = row["file"], self.folder / "images", self.folder / "masks"
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise InputError(f"{self.folder / 'images.csv'} names {file}, which is outside images/; put the image there.")
        names = [masks / file, *((masks / file).with_suffix(suffix) for suffix in (".png", ".tif", ".tiff", ".bmp"))]
        names.sort(key=lambda name: name.suffix.lower() in (".jpg", ".jpeg"))  # is refused as a mask, so the others first
        mask = next((name for name in names if name.is_file()), masks / file)
        return Record(file, row.get("source_id") or None, row.get("split") or None, images / file, mask)


def _read_captions(path: Path) -> dict[str, str]:
    """The captions of a jsonl file by the name of their image, {} where there is none."""
    rows = read_lines(path)
    for row, key in ((row, key) for row in rows for key in ("file", "caption")):
        if not isinstance(row.get(key), str):
            raise InputError(f"{path} has a line without {key!r} as a text; give each line a file and its caption.")
    return {row["file"]: row["caption"] for row in rows}


def read_table(folder: Path) -> list[dict]:
    """The rows of images.csv, or all files of images/ where there is none."""
    path = folder / "images.csv"
    if not path.is_file():
        files = sorted((folder / "images").iterdir())
        return [{"file": f.name} for f in files if f.suffix.lower() in IMAGE_SUFFIXES and f.name[0] != "."]
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise InputError(f"{path} is not a readable csv table ({error}); save it as UTF-8 csv.") from error
    if any(not row.get("file") for row in rows):
        raise InputError(f"{path} has rows without a value in the column 'file'; name the image in each row.")
    return rows


def data_root(folder: str | Path | None = None) -> Path:
    """The folder of all datasets, which must exist: the one given, else the one that ULLSAM_DATA names."""
    named = folder if folder is not None else os.environ.get("ULLSAM_DATA")
    how = "set ULLSAM_DATA to the folder of your datasets, or fill one with `python -m ullsam prepare-data`"
    if not named:
        raise InputError(f"no data folder is named; {how}.")
    root = Path(named).expanduser()
    if not root.is_dir():
        raise InputError(f"the data folder {root} does not exist; {how}.")
    return root


def find_corpora(root: str | Path, role: str = "in_domain") -> list[Corpus]:
    """Open every dataset of one role, sorted by folder name.

    Args:
        root: the folder of all datasets, see `data_root`; role: its subfolder, "in_domain" or "out_of_domain".

    Raises:
        InputError: the subfolder is missing or holds no dataset.
    """
    folder = Path(root) / role
    found = [path.parent for path in sorted(folder.glob("*/images")) if path.is_dir()]
    if not found:
        raise InputError(f"{folder} holds no dataset; each needs a folder with images/ and masks/ inside.")
    return [Corpus(path) for path in found]


def spaced(items: Sequence[T], limit: int | None) -> list[T]:
    """`limit` of the items, evenly spaced; all of them for None."""
    count = len(items)
    kept = min(count, limit or count)
    return [items[(2 * i + 1) * count // (2 * kept)] for i in range(kept)]
