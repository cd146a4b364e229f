"""Annotations as files that other programs read: one function for each format.

Letters: Z pages, H and W rows and columns of a page, C channels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from ullsam.data.io import png, write_atomic
from ullsam.errors import InputError
from ullsam.plots.overlays import overlay
from ullsam.widgets.annotations import PLAIN_NAME, Annotations
from ullsam.widgets.export_corpus import csv_text, write_corpus
from ullsam.widgets.export_imagej import write_rois, write_tiff
from ullsam.widgets.instances import Region, regions


def export(annotations: Annotations, folder: str | Path, kinds: Iterable[str]) -> dict[str, Path]:
    """Writes annotations in each of the formats asked for; each file is complete or absent.

    Args:
        annotations: at least one instance.
        folder: made if absent.
        kinds: of "tiff" (16-bit labels for ImageJ), "roi" (for ImageJ's ROI manager), "coco" (JSON with run lengths),
            "overlay" (a PNG, or a folder of them for a stack), "csv" (measurements), and "corpus" (the folder `corpus`
            for training, to which further images are added).

    Returns:
        The file or folder of each kind.

    Raises:
        InputError: nothing to export, an unknown kind, a folder that cannot be written, or what a format cannot hold.
    """
    kinds, folder = [kinds] if isinstance(kinds, str) else list(kinds), Path(folder)
    unknown = [str(kind) for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise InputError(f"There is no export {', '.join(unknown) or 'of nothing'}; choose of {', '.join(KINDS)}.")
    if not any(labels.any() for labels in annotations.labels.values()):
        raise InputError("There is no instance to export; save one first.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return {kind: KINDS[kind](annotations, folder) for kind in kinds}
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); name another folder.") from error


def write_coco(annotations: Annotations, folder: Path) -> Path:
    """`<name>_coco.json`: masks as COCO's uncompressed run lengths, a category for each name, an image for each page."""
    objects, path = list(annotations.objects()), folder / f"{annotations.name}_coco.json"
    categories = {name: i for i, name in enumerate(sorted({name for _, _, name, _ in objects}), start=1)}
    content = {
        "info": {"description": f"Instances of {annotations.name}"},
        "images": [_coco_image(annotations, page) for page in sorted(annotations.labels)],
        "categories": [{"id": i, "name": name} for name, i in categories.items()],
        "annotations": [
            {
                "id": number,
                "image_id": page + 1,
                "category_id": categories[name],
                "iscrowd": 0,
                "area": region.area,
                "bbox": [region.x0, region.y0, *region.pixels.shape[::-1]],
                "segmentation": run_lengths(region, annotations.labels[page].shape),
            }
            for page, number, name, region in objects
        ],
    }
    write_atomic(path, json.dumps(content, ensure_ascii=False).encode("utf-8"))
    return path


def _coco_image(annotations: Annotations, page: int) -> dict:
    height, width = annotations.labels[page].shape
    file = annotations.file if annotations.file and annotations.count == 1 else f"{annotations.page_name(page)}.png"
    return {"id": page + 1, "file_name": file, "height": height, "width": width}


def run_lengths(region: Region, size: tuple[int, int]) -> dict:
    """{"size": [H, W], "counts": [...]}: pixels outside, inside, outside, ... counted down the columns, left to right."""
    x, y = np.nonzero(region.pixels.T)
    place = (x + region.x0) * size[0] + y + region.y0  # ascending
    jumps = np.flatnonzero(np.diff(place) > 1)
    starts, ends = place[np.r_[0, jumps + 1]], place[np.r_[jumps, -1]] + 1
    edges = np.stack([starts, ends], axis=1).ravel()  # (runs, 2) -> (2 * runs,)
    counts = np.diff(np.r_[0, edges, size[0] * size[1]]).tolist()
    return {"size": list(size), "counts": counts if counts[-1] else counts[:-1]}


def write_overlay(annotations: Annotations, folder: Path) -> Path:
    """`<name>_overlay.png`, for a stack the folder `<name>_overlay`: tinted and outlined instances with their numbers."""
    pictures = {page: _picture(annotations, page) for page in sorted(annotations.labels)}
    if annotations.count == 1:
        path = folder / f"{annotations.name}_overlay.png"
        write_atomic(path, pictures[0])
        return path
    path = folder / f"{annotations.name}_overlay"
    path.mkdir(exist_ok=True)
    for page, content in pictures.items():
        write_atomic(path / f"{annotations.page_name(page)}.png", content)
    return path


def _picture(annotations: Annotations, page: int) -> bytes:
    return png(numbered((annotations.shown or annotations.images)[page], annotations.labels[page]))


def numbered(image: np.ndarray, labels: np.ndarray, letters: float = 1.0) -> np.ndarray:
    """uint8 RGB (H, W, 3): an image (H, W, ...) with its instances, integer (H, W), tinted and numbered.

    Args:
        letters: size of the numbers, against those of an exported picture.
    """
    picture = overlay(image, labels)
    for number, region in regions(labels).items():
        _write_number(picture, number, _middle(region), letters)
    return picture


def _write_number(picture: np.ndarray, number: int, place: tuple[int, int], letters: float) -> None:
    """White with a black rim around (x, y), moved inside the picture where it would leave it."""
    text, font, size = str(number), cv2.FONT_HERSHEY_SIMPLEX, letters * max(0.4, max(picture.shape) / 1600)
    thickness = max(1, round(2 * size))
    (width, height), _ = cv2.getTextSize(text, font, size, thickness)
    x = min(max(place[0] - width // 2, 0), picture.shape[1] - width)
    y = min(max(place[1] + height // 2, height), picture.shape[0] - 1)
    for colour, extra in (((0, 0, 0), 2), ((255, 255, 255), 0)):
        cv2.putText(picture, text, (x, y), font, size, colour, thickness + extra, cv2.LINE_AA)


def _middle(region: Region) -> tuple[int, int]:
    """The pixel (x, y) of an object that is farthest from its border."""
    depth = cv2.distanceTransform(np.pad(region.pixels, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3)
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return region.x0 + int(x) - 1, region.y0 + int(y) - 1


def write_csv(annotations: Annotations, folder: Path) -> Path:
    """`<name>_measurements.csv`: a row for each instance; lengths in pixels, and in micrometres where they are known."""
    rows = [row for page in sorted(annotations.labels) for row in measure(annotations, page)]
    path = folder / f"{annotations.name}_measurements.csv"
    write_atomic(path, csv_text(rows).encode("utf-8"))
    return path


def measure(annotations: Annotations, page: int) -> list[dict]:
    """Page and number from 1, name, area, diameter of the circle of this area, centre (x, y) and mean of each channel."""
    from skimage.measure import regionprops

    found, image = regions(annotations.labels[page]), annotations.images[page]
    dense = np.zeros(annotations.labels[page].shape, np.int32)
    for i, region in enumerate(found.values(), start=1):
        dense[region.window][region.pixels] = i
    um, rows = annotations.pixel_size, []
    for number, props in zip(found, regionprops(dense, image), strict=True):
        (y, x), means = props.centroid, np.atleast_1d(props.intensity_mean)
        titles = ["mean_intensity"] if len(means) == 1 else [f"mean_intensity_{c + 1}" for c in range(len(means))]
        row = {"page": page + 1, "number": number, "name": annotations.names.get(number, PLAIN_NAME)}
        row |= {"area_px": int(props.area), "diameter_px": props.equivalent_diameter_area, "x_px": x, "y_px": y}
        if um:
            area = float(props.area) * um[0] * um[1]
            row |= {"area_um2": area, "diameter_um": 2 * np.sqrt(area / np.pi)}
        rows.append(row | dict(zip(titles, means.tolist(), strict=True)))
    return rows


KINDS = {
    "tiff": write_tiff,
    "roi": write_rois,
    "coco": write_coco,
    "overlay": write_overlay,
    "csv": write_csv,
    "corpus": write_corpus,
}
