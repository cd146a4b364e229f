"""Annotations as files that other programs read: one function for each format.

Letters: Z pages, H and W rows and columns of a page, C channels.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import count, product
from pathlib import Path

import cv2
import numpy as np

from ullsam.data.corpus import read_table
from ullsam.data.decode import open_tiff
from ullsam.data.io import png, write_atomic, write_labels
from ullsam.errors import InputError
from ullsam.files import write_json
from ullsam.plots.overlays import overlay
from ullsam.widgets.instances import LARGEST, PLAIN_NAME, Annotations, Region, file_name, regions
from ullsam.widgets.project import locked

COLUMNS = ("file", "source_id", "split", "n_instances", "height", "width", "sha256")  # of a corpus's images.csv


def export(annotations: Annotations, folder: str | Path, formats: Iterable[str]) -> dict[str, Path]:
    """Writes annotations in each of the formats asked for; each file is complete or absent.

    Args:
        annotations: at least one instance.
        folder: made if absent.
        formats: of "tiff" (16-bit labels for ImageJ), "roi" (for ImageJ's ROI manager), "coco" (JSON with run lengths),
            "overlay" (a PNG, or a folder of them for a stack), "csv" (measurements), and "corpus" (the folder `corpus`
            for training, to which further images are added).

    Returns:
        The file or folder of each format.

    Raises:
        InputError: nothing to export, an unknown format, a folder that cannot be written, or what a format cannot hold.
    """
    formats, folder = [formats] if isinstance(formats, str) else list(formats), Path(folder)
    unknown = [str(name) for name in formats if name not in EXPORT_FORMATS]
    if unknown or not formats:
        raise InputError(f"There is no export {', '.join(unknown) or 'of nothing'}; choose of {', '.join(EXPORT_FORMATS)}.")
    if empty := not any(labels.any() for labels in annotations.labels.values()):  # a corpus loses what it has of the image
        formats = ["corpus"] if "corpus" in formats and (folder / "corpus" / "images.csv").is_file() else []
        annotations = replace(annotations, labels={})
    try:
        if formats:
            folder.mkdir(parents=True, exist_ok=True)
        files = {name: EXPORT_FORMATS[name][1](annotations, folder) for name in formats}
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); name another folder.") from error
    if empty:
        raise InputError("There is no instance to export; save one first.")
    return files


def write_tiff(annotations: Annotations, folder: Path) -> Path:
    """`<name>_labels.tif`: uint16 (H, W) or (Z, H, W) as ImageJ writes it, with the size of a pixel where it is known."""
    import tifffile

    sizes, largest = {x.shape for x in annotations.labels.values()}, max(x.max() for x in annotations.labels.values())
    if len(sizes) > 1:
        raise InputError("The pages have different sizes, which no label stack can hold; export the corpus instead.")
    if largest > LARGEST:
        raise InputError(f"Number {largest} is too large for a 16-bit label image; export the corpus, which takes it.")
    stack = np.zeros((annotations.count, *sizes.pop()), np.uint16)  # (Z, H, W)
    for page, labels in annotations.labels.items():
        stack[page] = labels
    um, metadata = annotations.pixel_size, {"axes": "ZYX", "min": 0.0, "max": float(stack.max())}
    if annotations.count == 1:
        stack, metadata["axes"] = stack[0], "YX"  # (1, H, W) -> (H, W)
    scale = {"resolution": (1 / um[0], 1 / um[1])} if um else {}  # pixels per unit
    buffer, path = io.BytesIO(), folder / f"{annotations.name}_labels.tif"
    tifffile.imwrite(buffer, stack, imagej=True, metadata=metadata | ({"unit": "um"} if um else {}), **scale)
    write_atomic(path, buffer.getvalue())
    return path


def write_rois(annotations: Annotations, folder: Path) -> Path:
    """`<name>_rois.zip`: an outline for each instance, exact to the pixel, holes and separate pieces included."""
    buffer, path = io.BytesIO(), folder / f"{annotations.name}_rois.zip"
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for page, number, name, region in annotations.objects():
            title = f"{number:04d}-" + file_name(re.sub(r"[^\w .+-]", "_", name))
            archive.writestr(f"{title}.roi", _roi(region, title, positions(annotations, page)).tobytes())
    write_atomic(path, buffer.getvalue())
    return path


def positions(annotations: Annotations, page: int) -> dict[str, int]:
    """Where ImageJ shows what lies on a page: its slice from 1, in a hyperstack its z and t, on all channels."""
    if annotations.count == 1:
        return {}
    stacked = {axis: n for axis, n in annotations.axes.items() if axis != "C"}
    if len(annotations.axes) < 2 or not set(stacked) <= set("ZT") or np.prod([*stacked.values()]) != annotations.count:
        return {"position": page + 1}
    indices = np.unravel_index(page, [*stacked.values()])
    return {f"{axis.lower()}_position": int(i) + 1 for axis, i in zip(stacked, indices, strict=True)}


def stack_axes(path: Path | None) -> dict[str, int]:
    """Sizes of the axes of a tif along which planes follow each other, such as {"T": 2, "Z": 3, "C": 2}; of others {}."""
    try:
        with open_tiff(path) as tif:
            (series,) = tif.series
            sizes = dict(zip(series.axes, series.shape, strict=True))
            return {axis: n for axis, n in sizes.items() if axis not in "YXS"}
    except Exception:  # no file, another format, or several images
        return {}


def _roi(region: Region, name: str, position: dict[str, int]):
    """A traced outline, or a composite where there are several."""
    from roifile import ROI_TYPE, ImagejRoi

    paths, (height, width) = outlines(region), region.pixels.shape
    if len(paths) == 1:
        roi = ImagejRoi.frompoints(paths[0], name=name)
        roi.roitype = ROI_TYPE.TRACED
        for key, value in position.items():
            setattr(roi, key, value)
        return roi
    steps = [[0.0, *path[0]] + [v for point in path[1:] for v in (1.0, *point)] + [4.0] for path in paths]
    line = np.concatenate(steps).astype(np.float32)  # 0 move to, 1 line to, 4 close
    frame = {"left": region.x0, "top": region.y0, "right": region.x0 + width, "bottom": region.y0 + height}
    shape = {"roitype": ROI_TYPE.RECT, "shape_roi_size": len(line), "multi_coordinates": line}
    return ImagejRoi(name=name, **position, **frame, **shape)


def outlines(region: Region) -> list[np.ndarray]:
    """Closed paths along the edges of the pixels, int (n, 2) each as x and y of pixel corners, turning points only.

    The pixel (x, y) reaches from (x, y) to (x + 1, y + 1), as in ImageJ. Holes are paths of the other direction.
    """
    double = np.pad(region.pixels.astype(np.uint8).repeat(2, 0).repeat(2, 1), 1)  # (h, w) -> (2h + 2, 2w + 2)
    contours, _ = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    paths = []
    for contour in contours:
        path = contour[:, 0] // 2  # (n, 1, 2) -> (n, 2): halves of pixels to corners
        path = path[(path != np.roll(path, 1, axis=0)).any(1)]
        before, after = path - np.roll(path, 1, axis=0), np.roll(path, -1, axis=0) - path
        paths.append(path[(before != after).any(1)] + (region.x0, region.y0))
    return paths


def write_coco(annotations: Annotations, folder: Path) -> Path:
    """`<name>_coco.json`: masks as COCO's uncompressed run lengths, a category for each name, an image for each page."""
    objects, images = list(annotations.objects()), []
    for page in sorted(annotations.labels):
        height, width = annotations.labels[page].shape
        file = annotations.file if annotations.file and annotations.count == 1 else f"{annotations.page_name(page)}.png"
        images.append({"id": page + 1, "file_name": file, "height": height, "width": width})
    categories = {name: i for i, name in enumerate(sorted({name for _, _, name, _ in objects}), start=1)}
    records = []
    for page, number, name, region in objects:
        ids = {"id": number, "image_id": page + 1, "category_id": categories[name], "iscrowd": 0}
        box, runs = [region.x0, region.y0, *region.pixels.shape[::-1]], run_lengths(region, annotations.labels[page].shape)
        asked = {"words": annotations.words[number]} if annotations.words.get(number) else {}
        records.append(ids | {"area": region.area, "bbox": box, "segmentation": runs} | asked)
    content = {"info": {"description": f"Instances of {annotations.name}"}, "images": images, "annotations": records}
    content["categories"] = [{"id": i, "name": name} for name, i in categories.items()]
    path = folder / f"{annotations.name}_coco.json"
    write_atomic(path, json.dumps(content, ensure_ascii=False).encode(errors="backslashreplace"))
    return path


def run_lengths(region: Region, size: tuple[int, int]) -> dict:
    """{"size": [H, W], "counts": [...]}: pixels outside, inside, outside, ... counted down the columns, left to right."""
    x, y = np.nonzero(region.pixels.T)
    position = (x + region.x0) * size[0] + y + region.y0  # ascending
    jumps = np.flatnonzero(np.diff(position) > 1)
    starts, ends = position[np.r_[0, jumps + 1]], position[np.r_[jumps, -1]] + 1
    edges = np.stack([starts, ends], axis=1).ravel()  # (runs, 2) -> (2 * runs,)
    counts = np.diff(np.r_[0, edges, size[0] * size[1]]).tolist()
    return {"size": list(size), "counts": counts if counts[-1] else counts[:-1]}


def write_overlay(annotations: Annotations, folder: Path) -> Path:
    """`<name>_overlay.png`, for a stack the folder `<name>_overlay`: tinted and outlined instances with their numbers."""
    images, single = annotations.pictures or annotations.images, annotations.count == 1
    path = folder / f"{annotations.name}_overlay{'.png' if single else ''}"
    if not single:
        path.mkdir(exist_ok=True)
        for page in set(range(annotations.count)) - set(annotations.labels):  # had instances in an earlier export
            (path / f"{annotations.page_name(page)}.png").unlink(missing_ok=True)
    for page, labels in annotations.labels.items():
        file = path if single else path / f"{annotations.page_name(page)}.png"
        write_atomic(file, png(numbered(images[page], labels)))
    return path


def numbered(image: np.ndarray, labels: np.ndarray, letters: float = 1.0) -> np.ndarray:
    """uint8 RGB (H, W, 3): an image (H, W, ...) with its instances, integer (H, W), tinted and numbered.

    A number is white with a black rim, in the middle of its instance but always inside the picture.

    Args:
        letters: size of the numbers, against those of an exported picture.
    """
    picture = overlay(image, labels)
    font, size = cv2.FONT_HERSHEY_SIMPLEX, letters * max(0.4, max(picture.shape) / 1600)
    thickness = max(1, round(2 * size))
    for number, region in regions(labels).items():
        depth = cv2.distanceTransform(np.pad(region.pixels, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3)
        row, column = np.unravel_index(depth.argmax(), depth.shape)  # farthest from the border
        (width, height), _ = cv2.getTextSize(str(number), font, size, thickness)
        x = min(max(region.x0 + int(column) - 1 - width // 2, 0), picture.shape[1] - width)
        y = min(max(region.y0 + int(row) - 1 + height // 2, height), picture.shape[0] - 1)
        for colour, extra in (((0, 0, 0), 2), ((255, 255, 255), 0)):
            cv2.putText(picture, str(number), (x, y), font, size, colour, thickness + extra, cv2.LINE_AA)
    return picture


def write_csv(annotations: Annotations, folder: Path) -> Path:
    """`<name>_measurements.csv`: a row for each instance; lengths in pixels, and in micrometres where they are known."""
    rows = [row for page in sorted(annotations.labels) for row in measure(annotations, page)]
    for row, key in product(rows, ("name", "words")):  # a table program would compute a name such as =1+1
        row[key] = f"'{row[key]}" if row[key].startswith(("=", "+", "-", "@")) else row[key]
    path = folder / f"{annotations.name}_measurements.csv"
    write_atomic(path, csv_text(rows).encode("utf-8"))
    return path


def measure(annotations: Annotations, page: int) -> list[dict]:
    """Page and number from 1, name, words, area, diameter of the circle of it, centre (x, y) and mean of each channel."""
    from skimage.measure import regionprops

    um, rows = annotations.pixel_size, []
    for number, region in regions(annotations.labels[page]).items():
        image, corner = (annotations.values or annotations.images)[page][region.window], (region.y0, region.x0)
        (props,) = regionprops(region.pixels.astype(np.uint8), image, offset=corner)
        (y, x), means = props.centroid, np.atleast_1d(props.intensity_mean)
        titles = ["mean_intensity"] if len(means) == 1 else [f"mean_intensity_{c + 1}" for c in range(len(means))]
        row = {"page": page + 1, "number": number, "name": annotations.names.get(number, PLAIN_NAME)}
        row |= {
            "words": annotations.words.get(number, ""),
            "area_px": int(props.area),
            "diameter_px": props.equivalent_diameter_area,
            "x_px": x,
            "y_px": y,
        }
        if um:
            area = float(props.area) * um[0] * um[1]
            row |= {"area_um2": area, "diameter_um": 2 * np.sqrt(area / np.pi)}
        rows.append(row | dict(zip(titles, means.tolist(), strict=True)))
    return rows


def write_corpus(annotations: Annotations, folder: Path) -> Path:
    """`corpus`: images/, masks/, images.csv and meta.json for `ullsam.Corpus`; what it holds of other images stays.

    Rows of this image from an earlier export are replaced; pages that have no instance any more are taken out.
    """
    root = folder / "corpus"
    for part in (root / "images", root / "masks"):
        part.mkdir(parents=True, exist_ok=True)
    with locked(root):
        table = root / "images.csv"
        old = read_table(root)
        rows = [_write_page(annotations, page, root) for page in sorted(annotations.labels)]
        new, known = {row["file"] for row in rows}, (annotations.sha, annotations.name)
        stale = {row["file"] for row in old if annotations.sha and (row.get("sha256"), row.get("source_id")) == known} - new
        columns = dict.fromkeys([*COLUMNS, *(key for row in old for key in row if key)])
        kept = [row for row in old if row["file"] not in new | stale]
        write_atomic(table, csv_text(kept + rows, columns).encode("utf-8"))
        for file in map(Path, stale):
            (root / "images" / file.name).unlink(missing_ok=True)
            (root / "masks" / f"{file.stem}.tif").unlink(missing_ok=True)
        if rows and not (root / "meta.json").exists():
            meta, um = {"name": annotations.name, "pixel_size": "not recorded"}, annotations.pixel_size
            if um:
                meta["pixel_size"] = "{:.6g} x {:.6g} um".format(*um)
            name = Counter([*annotations.names.values()] or [PLAIN_NAME]).most_common(1)[0][0]
            write_json(root / "meta.json", meta if name == PLAIN_NAME else meta | {"structure": name})
    return root


def _write_page(annotations: Annotations, page: int, root: Path) -> dict:
    """Writes the image and the mask of a page into a corpus and returns its row of images.csv."""
    labels = annotations.labels[page]
    file = _write_image(annotations.images[page], root / "images", annotations.page_name(page))
    write_labels(root / "masks" / f"{Path(file).stem}.tif", labels)
    values = (file, annotations.name, "train", len(regions(labels)), *labels.shape, annotations.sha)
    return dict(zip(COLUMNS, values, strict=True))


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


def csv_text(rows: list[dict], columns: Iterable[str] | None = None) -> str:
    """Rows as csv; numbers with at most six digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns or rows[0]), lineterminator="\n", restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return text.getvalue()


EXPORT_FORMATS = {  # name -> what the widget calls it, and what writes it
    "tiff": ("Label image (16-bit TIFF)", write_tiff),
    "roi": ("ImageJ ROIs (zip)", write_rois),
    "coco": ("COCO (JSON)", write_coco),
    "overlay": ("Overlay (PNG)", write_overlay),
    "csv": ("Measurements (CSV)", write_csv),
    "corpus": ("Folder for training", write_corpus),
}
