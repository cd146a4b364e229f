"""Turn the bytes of an image file into an array, or say in one sentence why that cannot be done.

What the numbers in a tif mean is told by its photometric interpretation:

| photometric                | of an image                               | of labels                      |
| 0, white is zero           | inverted; unsigned integers only          | 1 bit inverted, more as stored |
| 1, black is zero; 4, mask  | as stored                                 | as stored                      |
| 2, RGB                     | as stored, an alpha being the fourth      | refused, as colours are        |
| 3, colour table            | looked up; as stored without `table`      | as stored                      |
| 5, CMYK; 6, YCbCr; 8, Lab  | 8-bit RGB                                 | refused, as colours are        |
| others: Bayer, LogLuv, ... | refused                                   | refused                        |

Grey of less than 8 bits is spread to 0..255 in images, and as stored in labels. Grey loses its alpha, and RGB that was
multiplied by its alpha is divided by it. Lossy compression is refused for labels. Pictures are turned as their orientation
(EXIF) says.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import cv2
import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from ullsam.errors import InputError, reason

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

MAX_PIXELS = 400_000_000
MAX_CHANNELS = 5
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURES = {b"\x89PNG": PngImageFile, b"\xff\xd8\xff": JpegImageFile, b"BM": BmpImageFile}  # by their first bytes
_SAMPLES = {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 4, 6: 3, 8: 3}  # photometric interpretation -> samples of its colours
_MODES = {5: "CMYK", 6: "YCbCr", 8: "LAB"}  # photometric interpretations that PIL turns into RGB
_YCBCR = {529: (0.299, 0.587, 0.114), 532: (0, 255, 128, 255, 128, 255)}  # the usual coefficients, black and white
_JPEG = {6, 7, 33007, 34892}  # compressions; these decode YCbCr to RGB themselves
_LOSSY = _JPEG | {22610, 33003, 33004, 33005, 34712, 34887, 34927, 34934, 50001, 50002, 52546}  # JPEG 2000 or XL, WebP, LERC
_TURNS = {2: (0, 1, 0), 3: (1, 1, 0), 4: (1, 0, 0), 5: (0, 0, 1), 6: (1, 0, 1), 7: (1, 1, 1), 8: (0, 1, 1)}
_TYPE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # of a tag's values, else 1
_NO_IMAGE = "{} is damaged or not an image; use a complete png, jpg, tif or bmp file."
_CUT = "{} ends too early, it was not copied whole or is damaged; copy it again."
_LAST_BASELINE_TAG = 532  # beyond it a tag is a program's own, and the image can be read without


def decode(path: str | Path, page: int | None = 0, labels: bool = False, table: bool = True) -> np.ndarray:
    """Decode a file by its content, whatever its suffix; the table at the top of this file says what the numbers mean.

    Args:
        path: the image file; page: which page of a tif, from 0; None: the only one.
        labels: the numbers are ids. table: look the colours of an indexed tif up.

    Returns:
        (H, W) or (H, W, C) array, not yet checked for its numbers.

    Raises:
        InputError: the file cannot be decoded, or has an unusable shape.
    """
    path = Path(path)
    is_tiff = _read_bytes(path, 4) in _TIFF_STARTS
    if page and not is_tiff:
        raise InputError(f"{path} has 1 page but page {page} was asked for; use page 0.")
    with _explained(path):
        array = _read_tiff(path, page, labels, table) if is_tiff else _read_picture(path, labels)
    check_shape(array, str(path))
    return array


def _read_bytes(path: Path, count: int = -1) -> bytes:
    """The first `count` bytes of a file, all for -1."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the path of one image file.")
        if not path.exists():
            raise InputError(f"{path} does not exist; check the path.")
        if not path.is_file():
            raise InputError(f"{path} is a device or a pipe; give the path of an image file.")
        with path.open("rb") as file:
            data = file.read(count)
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}); check its name and permissions.") from error
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


def _read_picture(path: Path, labels: bool) -> np.ndarray:
    """A png, jpg or bmp file, decoded by OpenCV; PIL knows its header, and the indices of a colour table."""
    data = _read_bytes(path)
    opened = _opened(path, data)
    check_pixels(opened.size[::-1], path)
    if labels and isinstance(opened, JpegImageFile):
        raise InputError(_lossy(path))
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise InputError(_NO_IMAGE.format(path))
    if labels and opened.mode in ("1", "P"):
        array = np.asarray(opened).astype(np.uint8)
    elif labels and opened.mode == "L" and isinstance(opened, PngImageFile):
        array = array // (255 // ((1 << min(data[24], 8)) - 1))  # ids of 2 or 4 bits were spread to 0..255
    elif isinstance(opened, PngImageFile) and data[25] == 4:  # grey and alpha
        array = array[..., 0]
    elif array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_BGRA2RGBA if array.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    return _turned(array, _exif_orientation(opened, data))


def _opened(path: Path, data: bytes) -> Image.Image:
    """The header of a png, jpg or bmp file; PIL decodes the rest when it is asked for it."""
    for start, picture in _PICTURES.items():
        if data.startswith(start):
            return picture(io.BytesIO(data))
    raise InputError(_NO_IMAGE.format(path))


def _lossy(path: Path) -> str:
    remedy = "save label images as png, or as tif without lossy compression"
    return f"{path} is compressed with losses (such as JPEG's), which change the ids of a label image; {remedy}."


def _exif_orientation(opened: Image.Image, data: bytes) -> int:
    """1 to 8; 1 where nothing is said."""
    if isinstance(opened, PngImageFile) and not any(x in data for x in (b"eXIf", b"Raw profile type", b"Orientation")):
        return 1  # PIL would decode the whole png to look behind its pixels
    try:
        return opened.getexif().get(274, 1)
    except Exception:  # a damaged EXIF block turns nothing
        return 1


def _turned(array: np.ndarray, orientation) -> np.ndarray:
    """The picture (H, W, ...) as viewers show it."""
    rows, columns, swap = _TURNS.get(orientation, (0, 0, 0))
    array = array[:: -1 if rows else 1, :: -1 if columns else 1]
    return np.ascontiguousarray(array.swapaxes(0, 1) if swap else array)


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
        return sum(map(_count_series_pages, _all_series(tif, path)))


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of an image file, of a tif its largest page, before anything is decoded."""
    path = Path(path)
    with _explained(path):
        if _read_bytes(path, 4) not in _TIFF_STARTS:
            return _opened(path, _read_bytes(path)).size[::-1]
        with open_tiff(path) as tif:
            pages = [series.keyframe for series in tif.series]
            return max(((page.imagelength, page.imagewidth) for page in pages), key=lambda size: size[0] * size[1])


def _all_series(tif: TiffFile, path: Path) -> list[TiffPageSeries]:
    """What the file holds, without previews and transparency masks; a file that was not copied whole is refused."""
    if not (tif.is_lsm or tif.is_ndpi):  # these have directories of their own kind
        _check_directories(tif, path)
    return [x for x in tif.series if not (x.keyframe.is_reduced or x.keyframe.is_mask)] or tif.series


def _check_directories(tif: TiffFile, path: Path) -> None:
    """Refuse a tif whose directories of pages, or their tags, or an ImageJ stack behind them, go on beyond its end.

    tifffile only logs it and leaves the rest of the pages or the names of their axes out.
    """
    count_form, entry_form, offset_form = (
        tif.byteorder + x for x in (("Q", "HHQ8s", "Q") if tif.is_bigtiff else ("H", "HHI4s", "I"))
    )
    file, first, found = tif.filehandle, tif.pages.first, set()
    offset = first.offset

    def read(form: str, count: int = 1) -> list[tuple]:
        data = file.read(struct.calcsize(form) * count)
        if len(data) < struct.calcsize(form) * count:
            raise InputError(_CUT.format(path))
        return list(struct.iter_unpack(form, data))

    while offset and offset not in found:
        found.add(offset)
        file.seek(offset)
        count = min(read(count_form)[0][0], file.size)
        for code, dtype, number, value in read(entry_form, count):
            length = number * _TYPE_BYTES.get(dtype, 1)
            outside = length > len(value) and struct.unpack(offset_form, value)[0] + length > file.size
            if outside and code <= _LAST_BASELINE_TAG:
                raise InputError(_CUT.format(path))
        offset = read(offset_form)[0][0]
    if offset:
        raise InputError(_CUT.format(path))
    images = (tif.imagej_metadata or {}).get("images", 1) if tif.is_imagej else 1
    if images > 1 and len(found) == 1 and first.is_final and first.offset < first.dataoffsets[0]:
        planes = (file.size - first.dataoffsets[0]) // first.nbytes  # beyond 4 GB there is one directory for all of them
        if 1 < planes < images:
            raise InputError(_CUT.format(path))


def _read_tiff(path: Path, page: int | None, labels: bool, table: bool) -> np.ndarray:
    """Read one page; all series of the file are counted through, in order."""
    with open_tiff(path) as tif:
        series = _all_series(tif, path)
        counts = [_count_series_pages(x) for x in series]
        total = sum(counts)
        if page is None and total > 1:
            raise InputError(f"{path} has {total} pages where one image is needed; save each page as a file of its own.")
        page = page or 0
        if not 0 <= page < total:
            remedy = f"use a page from 0 to {total - 1}"
            raise InputError(f"{path} has {total} page{'s' * (total != 1)} but page {page} was asked for; {remedy}.")
        which = int(np.searchsorted(np.cumsum(counts), page, side="right"))
        return _series_page(series[which], page - sum(counts[:which]), path, labels, table)


def _tiff_axes(series: TiffPageSeries) -> str:
    """The axes of a series, with an unnamed last axis that is short, or much shorter than the others, as channels."""
    axes, shape = series.axes, series.shape
    if axes[-3:] in ("QYX", "IYX") and (shape[-1] <= MAX_CHANNELS or 4 * shape[-1] <= min(shape[-3:-1])):
        return axes[:-3] + "YXS"
    return axes


def _count_series_pages(series: TiffPageSeries) -> int:
    """Number of pages, each with all of its channels."""
    sizes = zip(_tiff_axes(series), series.shape, strict=True)
    return int(np.prod([n for axis, n in sizes if axis not in "YXSC"]))


def _series_page(series: TiffPageSeries, index: int, path: Path, labels: bool, table: bool) -> np.ndarray:
    """One (H, W) or (H, W, C) page of a series, without reading the others."""
    axes, shape, stored = _tiff_axes(series), series.shape, series.keyframe.shape  # stored: of one plane in the file
    sizes = dict(zip(axes, shape, strict=True))
    check_pixels((sizes["Y"], sizes["X"]), path)
    check_channels(sizes.get("S", 1) * sizes.get("C", 1), str(path))
    leading = len(axes) - len(stored)
    if shape[leading:] != stored or set(axes[leading:]) - set("YXS") or series.keyframe.dtype is None:
        raise InputError(f"{path} stores its numbers in an unknown way; open it in Fiji and save it as png or tif.")
    order = sorted(range(leading), key=lambda i: axes[i] in "YC")  # stacks first, what belongs to one page last
    numbers = np.arange(np.prod(shape[:leading], dtype=int)).reshape(shape[:leading]).transpose(order)
    wanted = numbers.reshape(_count_series_pages(series), -1)[index].tolist()
    planes = [_plane(series, number, path, labels, table) for number in wanted]
    if set(axes[:leading]) & set("YC"):
        array = np.stack(planes)
        return np.moveaxis(array, 0, -1) if "C" in axes[:leading] else array
    return planes[0]


def _plane(series: TiffPageSeries, number: int, path: Path, labels: bool, table: bool) -> np.ndarray:
    """One plane as the file stores it, from 0, as (H, W) or (H, W, S), with the meaning that its own tags give it."""
    page, start = series.keyframe, series.dataoffset
    if start is not None:  # all planes lie one after the other, also where one directory serves for many
        file, size = page.parent.filehandle, int(np.prod(page.shape))
        file.seek(start + number * size * page.dtype.itemsize)
        array = file.read_array(page.parent.byteorder + page.dtype.char, size).reshape(page.shape)
        array = array.astype(page.dtype, copy=False)
    else:
        frame = series[number]
        if frame is None:
            raise InputError(f"{path} lacks a part of its pages; copy the whole file, or all files of the set, again.")
        frame.parent.filehandle.open()  # that of another file of the set is closed; else this does nothing
        page = frame.keyframe if frame.is_virtual else frame.aspage()
        check_pixels((page.imagelength, page.imagewidth), path)
        ends, needed = np.add(frame.dataoffsets, frame.databytecounts), int(np.prod(page.chunked))
        cut = page.compression != 1 and ends.max(initial=0) > frame.parent.filehandle.size
        if cut or len(ends) < needed and not page.is_contiguous:
            raise InputError(_CUT.format(path))
        array = frame.asarray() if frame.is_virtual else page.asarray()
    array = np.moveaxis(array, 0, -1) if page.axes == "SYX" else array
    return _turned(_interpreted(array, page, path, labels, table), page.tags.valueof(274, 1))


def _interpreted(array: np.ndarray, page: TiffPage, path: Path, labels: bool, table: bool) -> np.ndarray:
    """Stored samples (H, W) or (H, W, S) as grey, colours or ids, see the table at the top of this file."""
    photometric, bits, dtype = int(page.photometric), page.bitspersample, array.dtype
    own = _SAMPLES.get(photometric, 0)
    if labels and page.compression in _LOSSY:
        raise InputError(_lossy(path))
    if not own or photometric == 0 and dtype.kind not in "bu" and not labels:
        raise InputError(_foreign(page, path))
    top = (1 << bits) - 1 if isinstance(bits, int) else 255
    array = array[..., None] if array.ndim == 2 else array
    extra = (*page.extrasamples, *[0] * array.shape[2])[: max(array.shape[2] - own, 0)]  # 1, 2: alpha; else a channel
    if 1 in extra and dtype.kind == "u" and own in (1, 3) and not labels:
        array = _divided(array, own, own + extra.index(1), top)
    if own == 1 and {1, 2} & {*extra}:
        array = array[..., [0, *(i for i, what in enumerate(extra, 1) if what not in (1, 2))]]
    if photometric == 0 and (dtype.kind == "b" or not labels):
        array = ~array if dtype.kind == "b" else dtype.type(top) - array
    if photometric == 3 and table and not labels:
        colours = np.asarray(page.colormap)[:, array[..., 0].astype(np.intp)]  # (3,H,W), 16 bits, though some write 8
        return np.moveaxis(colours >> 8 if np.max(page.colormap) > 255 else colours, 0, -1).astype(np.uint8)
    if photometric in _MODES and not labels:
        return _as_rgb(array, page, path)
    if own == 1 and dtype.kind == "u" and top < 255 and not labels:
        array = (array.astype(np.uint16) * 255 // top).astype(np.uint8)
    return array[..., 0] if array.shape[2] == 1 else array


def _divided(array: np.ndarray, own: int, at: int, top: int) -> np.ndarray:
    """(H, W, S) with the first `own` samples divided by their alpha, the sample `at`, that they were multiplied by."""
    alpha = array[..., at : at + 1].astype(np.uint64)
    colours = np.minimum(array[..., :own].astype(np.uint64) * np.uint64(top) // np.maximum(alpha, 1), top) * (alpha > 0)
    return np.concatenate([colours.astype(array.dtype), array[..., own:]], axis=-1)


def _as_rgb(array: np.ndarray, page: TiffPage, path: Path) -> np.ndarray:
    """CMYK, YCbCr or Lab (H, W, S) as uint8 RGB (H, W, 3)."""
    photometric, own = int(page.photometric), _SAMPLES[int(page.photometric)]
    if photometric == 6 and page.compression in _JPEG and page.planarconfig == 1 and not page.extrasamples:
        return array
    tags = {code: np.ravel(page.tags[code].value) for code in _YCBCR if photometric == 6 and code in page.tags}
    usual = all(np.allclose(x[::2] / np.maximum(x[1::2], 1), _YCBCR[code], atol=1e-3) for code, x in tags.items())
    known = usual and page.tags.valueof(332, 1) == 1 and (photometric != 6 or page.compression not in _LOSSY)
    if not known or array.shape[2] < own or array.dtype not in ((np.uint8, np.uint16) if photometric == 5 else (np.uint8,)):
        raise InputError(_foreign(page, path))
    eight = (array[..., :own] >> 8 * (array.dtype.itemsize - 1)).astype(np.uint8)
    return np.asarray(Image.frombytes(_MODES[photometric], eight.shape[1::-1], eight.tobytes()).convert("RGB"))


def _foreign(page: TiffPage, path: Path) -> str:
    name = getattr(page.photometric, "name", page.photometric)
    return f"{path} stores {page.dtype} colours as {name}, which is not read here; save it as RGB or grey."


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
    """Accept integers, bools and finite real floats."""
    if array.dtype.kind not in "buif":
        raise InputError(f"{name} holds {array.dtype} values; convert it to integers or real floats.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{name} contains NaN or infinite values; replace them, e.g. with np.nan_to_num.")
