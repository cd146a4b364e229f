"""Annotations for ImageJ: a label image, and the outlines that its ROI manager opens."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import cv2
import numpy as np

from ullsam.data.io import write_atomic
from ullsam.errors import InputError
from ullsam.widgets.annotations import Annotations
from ullsam.widgets.instances import Region


def write_tiff(annotations: Annotations, folder: Path) -> Path:
    """`<name>_labels.tif`: uint16 (H, W) or (Z, H, W) as ImageJ writes it, with the size of a pixel where it is known."""
    import tifffile

    stack, um = _label_stack(annotations), annotations.pixel_size
    metadata = {"axes": "ZYX", "min": 0.0, "max": float(stack.max()), **({"unit": "um"} if um else {})}
    scale = {"resolution": (1 / um[0], 1 / um[1])} if um else {}  # pixels per unit
    if annotations.count == 1:
        stack, metadata["axes"] = stack[0], "YX"  # (1, H, W) -> (H, W)
    buffer, path = io.BytesIO(), folder / f"{annotations.name}_labels.tif"
    tifffile.imwrite(buffer, stack, imagej=True, metadata=metadata, **scale)
    write_atomic(path, buffer.getvalue())
    return path


def _label_stack(annotations: Annotations) -> np.ndarray:
    """uint16 (Z, H, W)."""
    sizes, largest = {x.shape for x in annotations.labels.values()}, max(x.max() for x in annotations.labels.values())
    if len(sizes) > 1:
        raise InputError("The pages have different sizes, which no label stack can hold; export the corpus instead.")
    if largest > np.iinfo(np.uint16).max:
        raise InputError(f"Number {largest} is too large for a 16-bit label image; export the corpus, which takes it.")
    stack = np.zeros((annotations.count, *sizes.pop()), np.uint16)
    for page, labels in annotations.labels.items():
        stack[page] = labels
    return stack


def write_rois(annotations: Annotations, folder: Path) -> Path:
    """`<name>_rois.zip`: an outline for each instance, exact to the pixel, holes and separate pieces included."""
    buffer, path = io.BytesIO(), folder / f"{annotations.name}_rois.zip"
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for page, number, name, region in annotations.objects():
            title = f"{number:04d}-" + re.sub(r"[^\w .+-]", "_", name)
            roi = _roi(outlines(region), title, page + 1 if annotations.count > 1 else 0)
            archive.writestr(f"{title}.roi", roi.tobytes())
    write_atomic(path, buffer.getvalue())
    return path


def _roi(paths: list[np.ndarray], name: str, position: int):
    """A traced outline, or a composite where there are several; `position` is the page from 1, 0 for none."""
    from roifile import ROI_TYPE, ImagejRoi

    if len(paths) == 1:
        roi = ImagejRoi.frompoints(paths[0], name=name)
        roi.roitype, roi.position = ROI_TYPE.TRACED, position
        return roi
    steps = [[0.0, *path[0]] + [v for point in path[1:] for v in (1.0, *point)] + [4.0] for path in paths]
    line = np.concatenate(steps).astype(np.float32)  # 0 move to, 1 line to, 4 close
    (left, top), (right, bottom) = (f([f(p, axis=0) for p in paths], axis=0).tolist() for f in (np.min, np.max))
    return ImagejRoi(
        roitype=ROI_TYPE.RECT,
        name=name,
        position=position,
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        shape_roi_size=len(line),
        multi_coordinates=line,
    )


def outlines(region: Region) -> list[np.ndarray]:
    """Closed paths along the edges of the pixels, int (n, 2) each as x and y of pixel corners.

    The pixel (x, y) reaches from (x, y) to (x + 1, y + 1), as in ImageJ. Holes are paths of the other direction.
    """
    double = np.pad(region.pixels.astype(np.uint8).repeat(2, 0).repeat(2, 1), 1)  # (h, w) -> (2h + 2, 2w + 2)
    contours, _ = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    corners = [contour[:, 0] // 2 for contour in contours]  # (n, 1, 2) -> (n, 2): halves of pixels to corners
    return [_without_middles(path) + (region.x0, region.y0) for path in corners]


def _without_middles(path: np.ndarray) -> np.ndarray:
    """A closed path (n, 2) of steps along the grid, with its turning points only."""
    path = path[(path != np.roll(path, 1, axis=0)).any(1)]
    before, after = path - np.roll(path, 1, axis=0), np.roll(path, -1, axis=0) - path
    return path[(before != after).any(1)]
