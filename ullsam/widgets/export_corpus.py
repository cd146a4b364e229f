"""Annotations as a folder that this package trains on, see `ullsam.Corpus`."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from itertools import count
from pathlib import Path

import numpy as np

from ullsam.data.io import png, write_atomic, write_labels
from ullsam.files import write_json
from ullsam.widgets.instances import PLAIN_NAME, Annotations, regions

COLUMNS = ("file", "source_id", "split", "n_instances", "height", "width")  # of a corpus's images.csv


def write_corpus(annotations: Annotations, folder: Path) -> Path:
    """`corpus`: images/, masks/, images.csv and meta.json for `ullsam.Corpus`; what the folder holds already stays."""
    root = folder / "corpus"
    for part in (root / "images", root / "masks"):
        part.mkdir(parents=True, exist_ok=True)
    rows = []
    for page in sorted(annotations.labels):
        labels = annotations.labels[page]
        file = _write_image(annotations.images[page], root / "images", annotations.page_name(page))
        write_labels(root / "masks" / f"{Path(file).stem}.tif", labels)
        sizes = {"n_instances": len(regions(labels)), "height": labels.shape[0], "width": labels.shape[1]}
        rows.append({"file": file, "source_id": annotations.name, "split": "train", **sizes})
    _update_table(root / "images.csv", rows)
    if not (root / "meta.json").exists():
        meta, um = {"name": annotations.name, "pixel_size": "not recorded"}, annotations.pixel_size
        if um:
            meta["pixel_size"] = "{:.6g} x {:.6g} um".format(*um)
        name = Counter([*annotations.names.values()] or [PLAIN_NAME]).most_common(1)[0][0]
        write_json(root / "meta.json", meta if name == PLAIN_NAME else meta | {"structure": name})
    return root


def _write_image(image: np.ndarray, folder: Path, stem: str) -> str:
    """Writes a png where that keeps the numbers, else a tif, and returns its name: a free one, or that of the same image."""
    import tifffile

    if image.dtype == bool:
        image = image.astype(np.uint8) * np.uint8(255)
    if image.dtype == np.uint8 and image.shape[2:] in ((), (3,)):
        suffix, content = ".png", png(image)
    else:
        planes = np.moveaxis(image, -1, 0) if image.ndim == 3 else image  # (H, W, C) -> (C, H, W)
        axes, buffer = "CYX" if image.ndim == 3 else "YX", io.BytesIO()
        tifffile.imwrite(buffer, planes, photometric="minisblack", compression="zlib", metadata={"axes": axes})
        suffix, content = ".tif", buffer.getvalue()
    taken = {path.stem for path in folder.iterdir()}
    for name in (stem if i == 1 else f"{stem}_{i}" for i in count(1)):
        file = folder / f"{name}{suffix}"
        if name not in taken or file.is_file() and file.read_bytes() == content:
            write_atomic(file, content)
            return file.name


def _update_table(path: Path, rows: list[dict]) -> None:
    """Puts rows into images.csv, over older ones of the same files."""
    old = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8-sig") as lines:
            old = list(csv.DictReader(lines))
    new = {row["file"] for row in rows}
    rows = [row for row in old if row["file"] not in new] + rows
    columns = dict.fromkeys([*COLUMNS, *(key for row in old for key in row)])
    write_atomic(path, csv_text(rows, columns).encode("utf-8"))


def csv_text(rows: list[dict], columns: Iterable[str] | None = None) -> str:
    """Rows as csv; numbers with at most six digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns or rows[0]), lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return text.getvalue()
