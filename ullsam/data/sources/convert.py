"""From a dataset's own files to a folder of `ullsam.Corpus`: sampled, split by source, square, instances renumbered."""

from __future__ import annotations

import csv
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from skimage.measure import label

from ullsam.data.io import is_grey, png, read_image, read_labels, to_rgb8, to_square, write_atomic, write_labels
from ullsam.errors import InputError, reason
from ullsam.files import whole_folder, write_json

MIN_AREA = 12  # pixels of the written mask; smaller pieces are left out
SIDE = 1024  # pixels; images with a longer side are made smaller
CARVED = {"val": 0.1, "test": 0.15}  # fraction of images that a split gets where the dataset has none


@dataclass(frozen=True)
class Item:
    """One image of a dataset before it is read."""

    source: str  # what a split never divides: a volume, a field of view, a patient
    split: str | None  # the dataset's own: "train", "val" or "test"
    note: str  # where it comes from
    load: Callable[[], tuple[np.ndarray, np.ndarray]]  # (H, W) or (H, W, C) image of any dtype, (H, W) instance ids


def read_pair(image: Path, mask: Path) -> tuple[np.ndarray, np.ndarray]:
    """An image file and the label file that belongs to it."""
    return read_image(image), read_labels(mask)


def one_per_mask(image: np.ndarray, masks: Iterable[Path]) -> np.ndarray:
    """One instance per mask file, which may be saved in colour: int32 (H, W) for an image (H, W) or (H, W, C)."""
    labels = np.zeros(image.shape[:2], np.int32)
    for index, path in enumerate(masks, 1):
        mask = read_image(path)
        labels[(mask if mask.ndim == 2 else mask[..., :3].max(-1)) > 0] = index
    return labels


def prepare(
    items: Sequence[Item], folder: Path, meta: dict, most: dict[str, int], seed: int = 0, work: Path | None = None
) -> tuple[dict[str, int], list[str]]:
    """Samples a dataset by split and writes it as a corpus in one step: it is there as a whole, or not at all.

    Args:
        items: all images of the dataset; folder: becomes the corpus, it must not exist; meta: facts for meta.json.
        most: the splits and the most images of each; a single "ood" split takes everything.
        seed: of the split and of the sample.
        work: where files are before they are complete, on the same disk (default: beside `folder`).

    Returns:
        The number of images per split, and why images were skipped.

    Raises:
        InputError: no image has an instance, or the disk is full.
    """
    groups = {"ood": list(items)} if "ood" in most else split_items(items, seed)

    def fill(writer: Writer) -> None:
        for name, members in groups.items():
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            order, wanted = list(rng.permutation(len(members))), most[name]
            while order and wanted:  # some turn out to be empty: more rounds, each in the order of the files
                now, order = sorted(order[:wanted]), order[wanted:]
                wanted -= sum(writer.add(members[i], name, f"{len(writer.rows):05d}.png", SIDE) for i in now)

    return write_corpus(folder, meta | {"seed": seed}, fill, work)


def write_corpus(
    folder: Path, meta: dict, fill: Callable[[Writer], None], work: Path | None = None
) -> tuple[dict[str, int], list[str]]:
    """Makes a corpus of what `fill` adds to a `Writer`; arguments, results and errors as in `prepare`."""
    try:
        with whole_folder(folder, work) as part:
            for name in ("images", "masks"):
                (part / name).mkdir(parents=True)
            writer = Writer(part)
            fill(writer)
            if not writer.rows:
                why = f" ({writer.skipped[0]})" if writer.skipped else ""
                raise InputError(f"No image of {folder.name} can be used{why}; look at the files that were downloaded.")
            with (part / "images.csv").open("w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, list(writer.rows[0]), lineterminator="\n")
                table.writeheader()
                table.writerows(writer.rows)
            counts = {"n_images": len(writer.rows), "n_instances": sum(row["n_instances"] for row in writer.rows)}
            counts["n_sources"] = len({row["source_id"] for row in writer.rows})
            write_json(part / "meta.json", meta | counts | {"skipped": writer.skipped})
    except OSError as error:
        text = f"{folder} could not be written ({error.strerror}); free some space and run the same command again."
        raise InputError(text) from error
    return dict(Counter(row["split"] for row in writer.rows)), writer.skipped


class Writer:
    """The files of a corpus that is being made, its rows of images.csv, and why images were skipped."""

    def __init__(self, folder: Path):
        self.folder, self.rows, self.skipped = folder, [], []

    def add(self, item: Item, split: str, file: str, side: int | None = None) -> bool:
        """Writes one image and its mask; False where it has no instance or cannot be read, which is noted in `skipped`.

        `side` makes a square of at most this many pixels and renumbers the instances; None: they are as they should be.
        """
        try:
            image, labels = item.load()
            image = to_rgb8(image, item.note)
            if labels.shape != image.shape[:2]:
                raise InputError(f"the image has {image.shape[:2]} pixels but its mask {labels.shape}.")
        except Exception as error:  # a damaged file makes its library say one of many things
            self.skipped.append(f"{item.note}: {reason(error)}")
            return False
        if side is not None:
            image, labels = square(image, labels, side)
        count = len(np.unique(labels[labels > 0]))
        if count:
            write_atomic(self.folder / "images" / file, png(image[..., 0] if is_grey(image) else image))
            write_labels(self.folder / "masks" / file, labels)
            facts = {"n_instances": count, "height": labels.shape[0], "width": labels.shape[1]}
            self.rows.append({"file": file, "source_id": item.source, "split": split, **facts, "note": item.note})
        return count > 0


def square(image: np.ndarray, labels: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Zero-pads an image and its labels on the right and below to a square, and makes it smaller where it exceeds `side`.

    Args:
        image: uint8 (H, W, 3); labels: int (H, W); side: the most pixels of the result's side.

    Returns:
        uint8 (S, S, 3) and int32 (S, S) with connected pieces as 1..n.
    """
    longest = max(labels.shape)
    size = min(side, longest)
    image, _ = to_square(image, size)
    padded = np.pad(labels.astype(np.int32), [(0, longest - n) for n in labels.shape])
    if size < len(padded):
        padded = cv2.resize(padded, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    return image, instances(padded)


def instances(labels: np.ndarray, min_area: int = MIN_AREA, connectivity: int = 1) -> np.ndarray:
    """Connected pieces of equal ids, numbered 1..n; an instance of a volume may lie in several pieces in one slice.

    Args:
        labels: int or bool (H, W), 0 background; min_area: smaller pieces become background, in pixels.
        connectivity: 1 joins 4 neighbours, 2 joins 8.
    """
    pieces = label(labels.astype(np.int32), connectivity=connectivity)
    kept = np.bincount(pieces.ravel()) >= min_area
    kept[0] = False
    return (np.cumsum(kept) * kept)[pieces].astype(np.int32)


def split_items(items: Sequence[Item], seed: int) -> dict[str, list[Item]]:
    """Items by split: the dataset's own where it has one, else whole sources drawn from its training part."""
    groups = {split: [item for item in items if (item.split or "train") == split] for split in ("train", "val", "test")}
    train, sizes = groups["train"], Counter(item.source for item in groups["train"])
    order = [sorted(sizes)[i] for i in np.random.default_rng(seed).permutation(len(sizes))]
    for split, fraction in CARVED.items():
        target, moved = 0 if groups[split] else fraction * len(train), set()
        while target > 0 and len(order) > 1:  # one source stays for training
            moved.add(order.pop())
            target = fraction * len(train) - sum(sizes[source] for source in moved)
        groups[split] += [item for item in train if item.source in moved]
    return groups | {"train": [item for item in train if item.source in order]}
