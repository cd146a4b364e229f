"""Turn the bytes of an image file into an array, or say in one sentence why that cannot be done."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import cv2
import numpy as np

from ullsam.errors import InputError, reason

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

MAX_PIXELS = 400_000_000
MAX_CHANNELS = 5
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def decode(path: str | Path, page: int, palette: bool) -> np.ndarray:
    """Decode a file by its content, whatever its suffix.

    Args:
        path: the image file; page: which page of a tif, from 0.
        palette: True looks indexed tif colours up, False keeps the indices.

    Returns:
        (H, W) or (H, W, C) array, not yet checked for its numbers.

    Raises:
        InputError: the file cannot be decoded, or has an unusable shape.
    """
    path = Path(path)
    if _read_bytes(path, 4) in _TIFF_STARTS:
        with _explained(path):
            array = _read_tiff(path, page, palette)
    elif page != 0:
        raise InputError(f"{path} has 1 page but page {page} was asked for; use page 0.")
    else:
        data = _read_bytes(path)
        with _explained(path):
            check_pixels(_header_size(data), path)
            array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if array is None:
                raise InputError(f"{path} is damaged or not an image; use a complete png, jpg, tif or bmp file.")
            if array.ndim == 3:
                array = cv2.cvtColor(array, cv2.COLOR_BGRA2RGBA if array.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    check_shape(array, str(path))
    return array


def _read_bytes(path: Path, count: int = -1) -> bytes:
    """The first `count` bytes of a file, all for -1."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the path of one image file.")
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    try:
        with path.open("rb") as file:
            data = file.read(count)
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}); check its permissions.") from error
    if not data:
        raise InputError(f"{path} is empty (0 bytes); copy or download the file again.")
    return data


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """A damaged file makes decoders fail in many ways, all mean the same to the user."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        why = reason(error).rstrip(".")
        text = f"{path} is damaged or in an unknown variant ({why}); open it in Fiji and save it as png or tif."
        raise InputError(text) from error


def _header_size(data: bytes) -> tuple[int, int]:
    """(height, width) that a png, bmp or jpg header announces, (0, 0) where it does not tell."""
    if data.startswith(b"\x89PNG") and len(data) >= 24:
        return struct.unpack(">II", data[16:24])[::-1]
    if data.startswith(b"BM") and len(data) >= 26:
        width, height = struct.unpack("<ii", data[18:26])
        return abs(height), abs(width)
    at = 2
    while data.startswith(b"\xff\xd8") and at + 9 <= len(data) and data[at] == 0xFF:  # the segments of a jpg
        if data[at + 1] in (0xC0, 0xC1, 0xC2):  # its frame header
            return struct.unpack(">HH", data[at + 5 : at + 9])
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return 0, 0


@contextmanager
def open_tiff(path: str | Path) -> Iterator[TiffFile]:
    """A tif for reading, together with the other files of its set only where all of these lie in its own folder.

    An OME-TIFF may name any file of this machine as a part of itself, and tifffile would open it. Where a part lies
    elsewhere, behind a link or nowhere, the tif is read as if it stood alone.

    Raises:
        InputError: an index of Micro-Manager beside the tif names files elsewhere.
    """
    import tifffile

    with tifffile.TiffFile(path, _multifile=False) as tif:
        folder = Path(tif.filehandle.path).resolve().parent
        try:
            xml = ElementTree.fromstring(tif.ome_metadata) if tif.is_ome else ()
        except ElementTree.ParseError:
            xml = ()
        names = [part.get("FileName") for element in xml for part in element.iter() if part.get("FileName") is not None]
        tif._multifile = bool(names) and all(_is_beside(name, folder) for name in names)
        index = folder / "NDTiff.index"
        if tif.is_ndtiff and index.exists():
            names = [index.name, *(entry[1] for entry in tifffile.tifffile.read_ndtiff_index(index))]
            if not all(_is_beside(name, folder) for name in names):
                raise InputError(f"{path}: its {index.name} names files outside its folder; copy the whole set into one.")
        yield tif


def _is_beside(name: str, folder: Path) -> bool:
    """A regular file of this name lies in the folder itself, not behind a link."""
    place = (folder / name).resolve()
    return place.parent == folder and place.is_file()


def count_pages(path: str | Path) -> int:
    """Number of pages of an image file: those of a tif, 1 for other formats; an InputError where it cannot be read."""
    path = Path(path)
    if _read_bytes(path, 4) not in _TIFF_STARTS:
        return 1
    with _explained(path), open_tiff(path) as tif:
        return sum(count_series_pages(series) for series in tif.series)


def _read_tiff(path: Path, page: int, palette: bool) -> np.ndarray:
    """Read one page; all series of the file are counted through, in order."""
    with open_tiff(path) as tif:
        counts = [count_series_pages(series) for series in tif.series]
        total = sum(counts)
        if not 0 <= page < total:
            remedy = f"use a page from 0 to {total - 1}"
            raise InputError(f"{path} has {total} page{'s' * (total != 1)} but page {page} was asked for; {remedy}.")
        which = int(np.searchsorted(np.cumsum(counts), page, side="right"))
        array = _series_page(tif.series[which], page - sum(counts[:which]), path)
        colormap = tif.series[which].keyframe.colormap
    if palette and colormap is not None and array.ndim == 2:
        return (np.moveaxis(np.asarray(colormap)[:, array], 0, -1) >> 8).astype(np.uint8)  # (H,W) -> (H,W,3)
    return array


def _tiff_axes(series: TiffPageSeries) -> str:
    """The axes of a series, with a short unnamed last axis recognised as channels."""
    axes = series.axes
    return axes[:-3] + "YXS" if axes.endswith("QYX") and series.shape[-1] <= MAX_CHANNELS else axes


def count_series_pages(series: TiffPageSeries) -> int:
    """Number of pages, each with all of its channels."""
    sizes = zip(_tiff_axes(series), series.shape, strict=True)
    return int(np.prod([n for axis, n in sizes if axis not in "YXSC"]))


def _series_page(series: TiffPageSeries, index: int, path: Path) -> np.ndarray:
    """One (H, W) or (H, W, C) page of a series, without reading the others where the file allows it."""
    axes = _tiff_axes(series)
    sizes = dict(zip(axes, series.shape, strict=True))
    check_pixels((sizes["Y"], sizes["X"]), path)
    check_channels(sizes.get("S", 1) * sizes.get("C", 1), str(path))
    order = sorted(range(len(axes)), key=lambda i: axes[i] in "YXSC")  # stacks first, the plane last
    plane = "".join(axes[i] for i in order if axes[i] in "YXSC")
    stored = series.keyframe.axes  # of one page as the file has it
    leading = len(axes) - len(stored)
    if axes.endswith(stored) and len(series.pages) == np.prod(series.shape[:leading], dtype=int):
        numbers = np.arange(len(series.pages)).reshape(series.shape[:leading])
        numbers = numbers.transpose([i for i in order if i < leading])  # (Z, ..., C)
        wanted = numbers.reshape(count_series_pages(series), -1)[index]  # one for each channel
        pages = [series.pages[i] for i in wanted.tolist()]
        if any(page is None for page in pages):
            raise InputError(f"{path} lacks a part of page {index}; copy the whole file again.")
        for page in pages:
            page.parent.filehandle.open()  # that of another file of the set is closed; else this does nothing
        array = np.stack([page.asarray() for page in pages]) if "C" in axes[:leading] else pages[0].asarray()
        axes = "C" * ("C" in axes[:leading]) + stored
    else:
        array = series.asarray().transpose(order)
        array, axes = array.reshape(-1, *array.shape[array.ndim - len(plane) :])[index], plane  # (Z,...,plane) -> plane
    channel = next((i for i, axis in enumerate(axes) if axis in "SC"), None)
    return array if channel is None else np.moveaxis(array, channel, -1)


def check_pixels(size: tuple[int, int], path: str | Path) -> None:
    """Refuse a picture that is too large, by its height and width."""
    if size[0] * size[1] > MAX_PIXELS:
        limit = f"{MAX_PIXELS // 10**6} megapixels; crop it or save it smaller"
        raise InputError(f"{path} has {size[1]} x {size[0]} pixels, over the limit of {limit}.")


def check_channels(count: int, name: str) -> None:
    """Refuse more channels than a model here can use."""
    if not 1 <= count <= MAX_CHANNELS:
        raise InputError(f"{name} has {count} channels; use 1 to {MAX_CHANNELS}, or give one page of a stack.")


def check_shape(array: np.ndarray, name: str) -> None:
    """Accept (H, W) and (H, W, 1..5) of at least 2 x 2 pixels."""
    if array.ndim not in (2, 3):
        raise InputError(f"{name} has shape {array.shape}; give one (H, W) or (H, W, C) image.")
    if min(array.shape[:2]) < 2:
        raise InputError(f"{name} is {array.shape[1]} x {array.shape[0]} pixels; give sides of 2 or more.")
    check_channels(array.shape[2] if array.ndim == 3 else 1, name)
    check_pixels(array.shape[:2], name)


def check_numbers(array: np.ndarray, name: str) -> None:
    if array.dtype.kind not in "buif":
        raise InputError(f"{name} holds {array.dtype} values; convert it to integers or real floats.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{name} contains NaN or infinite values; replace them, e.g. with np.nan_to_num.")
