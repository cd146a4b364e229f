"""Read any microscopy image or label image, and go to a model's square input and back; rows of jsonl files.

Points are (x, y) in pixels; the integer pixel (x, y) is array[y, x] and its centre has integer coordinates.
"""

import importlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from ullsam.data.decode import MAX_CHANNELS, check_numbers, check_shape, decode
from ullsam.data.text import read_text
from ullsam.errors import InputError, reason
from ullsam.files import whole

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
ARRAY_MODES = ("1", "L", "I", "I;16", "I;16L", "I;16B", "I;16N", "F", "RGB", "RGBA")  # of PIL images, arrays as they are


def read_image(path: str | Path, page: int | None = 0) -> np.ndarray:
    """Read one image with its own numbers, turned as viewers show it (its EXIF orientation).

    Args:
        path: a png, jpg, tif (8/16/32-bit, float, multi-page) or bmp file; page: of a multi-page tif, from 0; None: a tif of
            several pages is refused.

    Returns:
        (H, W) or (H, W, C) array of the file's dtype, colour as RGB(A); indexed colours are looked up, CMYK and YCbCr become
        RGB, and white is the largest value also where a tif stores it as 0 (see `ullsam.data.decode`).

    Raises:
        InputError: the file is missing, damaged, not copied whole, not an image, or holds what no model here can use.
    """
    array = decode(path, page)
    check_numbers(array, str(path))
    return array


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label image: 0 is background, every other value is one instance.

    Args:
        path: a single-channel integer png, tif or bmp file of one page; of indexed colours the indices count.

    Returns:
        int32 (H, W), the ids unchanged.

    Raises:
        InputError: the file cannot be read, is a colour or float image, or was compressed with losses, as a jpg.
    """
    array = decode(path, None, labels=True)
    if array.ndim == 3:
        remedy = "save the instance ids as a 16-bit grey png or tif"
        raise InputError(f"{path} has {array.shape[2]} channels but a label image has one; {remedy}.")
    return as_labels(array, str(path))


def as_labels(array: np.ndarray, name: str) -> np.ndarray:
    """Integers or bools as int32 ids; `name` is what an InputError calls an array that holds anything else."""
    if array.dtype.kind not in "bui":
        raise InputError(f"{name} holds {array.dtype} values, labels are integers; round and convert them.")
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int32).max):
        raise InputError(f"{name} has ids outside 0 to {np.iinfo(np.int32).max}; renumber the instances.")
    return array.astype(np.int32)


def renumbered(labels: np.ndarray) -> np.ndarray:
    """The same instances as 1, 2, ... in the order of their ids, none negative; 0 stays the background. Any shape."""
    if labels.min(initial=0) >= 0 and labels.max(initial=0) <= 4 * labels.size:  # a table of all ids is fast and small
        labels = labels.astype(np.int64)
        present = np.bincount(labels.ravel(), minlength=1) > 0
        present[0] = False
        return (np.cumsum(present) * present)[labels]
    ids, order = np.unique(labels, return_inverse=True)
    return order.reshape(labels.shape) + int(not (ids == 0).any())


def write_labels(path: str | Path, labels: np.ndarray) -> None:
    """Write a label image in one step: a reader sees the old file or the whole new one.

    Args:
        path: ends in .png, .tif or .tiff; its folder exists.
        labels: integer or bool (H, W), 0 background; written with 16 bits, 32 where an id exceeds 65535.

    Raises:
        InputError: the array is no label image, the suffix is another one, or a png would need 32 bits.
    """
    path, labels = Path(path), np.asarray(labels)
    if labels.ndim != 2:
        raise InputError(f"labels have shape {labels.shape}; give one (H, W) array of instance ids.")
    check_shape(labels, "labels")
    labels = as_labels(labels, "labels")
    wide = labels.max() > np.iinfo(np.uint16).max
    labels, suffix = labels.astype(np.uint32 if wide else np.uint16), path.suffix.lower()
    if suffix in (".tif", ".tiff"):
        import tifffile

        buffer = io.BytesIO()
        tifffile.imwrite(buffer, labels, compression="zlib", photometric="minisblack")
        return write_atomic(path, buffer.getvalue())
    if suffix != ".png":
        raise InputError(f"{path} does not end in .png, .tif or .tiff; labels are written in these formats.")
    if wide:
        raise InputError(f"{path} cannot hold id {labels.max()}, a png has 16 bits; use the suffix .tif.")
    write_atomic(path, png(labels))


def png(image: np.ndarray) -> bytes:
    """The bytes of a PNG file: uint8 or uint16 (H, W), or RGB (H, W, 3)."""
    return cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)[1].tobytes()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file in one step, see `ullsam.files.whole`, into a folder that exists."""
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; create it first.")
    with whole(path) as part:
        part.write_bytes(content)


def read_lines(path: Path, mend: bool = False) -> list[dict]:
    """The rows of a jsonl file, none if it is missing; a last row that is not complete does not count.

    `mend` also removes such a row, whose writer was stopped within it, from the file, and ends the last line, so that rows
    can be added. Another line that is not a JSON object is an InputError; empty lines are none.
    """
    lines, rows, whole_text = read_text(path, stopped=True).split("\n") if path.is_file() else [], [], ""
    for number, line in enumerate(lines, 1):
        try:
            rows += [{**json.loads(line)}] if line.strip() else []
            whole_text += line + "\n" if line.strip() else ""
        except (ValueError, TypeError, RecursionError) as error:
            if number < len(lines) or not line.startswith("{"):
                remedy = "correct or remove it"
                raise InputError(f"Line {number} of {path} is not valid JSON ({reason(error)}); {remedy}.") from error
    if mend and path.is_file() and path.read_bytes() != whole_text.encode():
        write_atomic(path, whole_text.encode())
    return rows


def append_line(file, row: dict) -> None:
    """Add one row to an open jsonl file, at once on the disk; a full disk is an InputError."""
    try:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{file.name} could not be written ({error.strerror}); free some space and run again.") from error


def need(module: str, use: str):
    """An optional library, imported; an InputError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f'{module} is needed to {use}; pip install "ullsam[full]".') from error


def is_grey(image: np.ndarray) -> bool:
    """True where the three channels of an RGB image are equal."""
    return np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 1], image[..., 2])


def as_array(image, name: str = "image") -> np.ndarray:
    """What numpy understands as an array, or a PIL image of any mode: indexed colours looked up, grey without its alpha.

    Raises:
        InputError: a path, or what is neither; `name` is what the sentence calls it.
    """
    if isinstance(image, (str, bytes, Path)):
        raise InputError(f"{name} is a path or text ({image!s:.80}); read it first with ullsam.read_image.")
    try:
        if isinstance(image, Image.Image) and image.mode in ("LA", "La"):
            image = image.getchannel(0)
        elif isinstance(image, Image.Image) and image.mode not in ARRAY_MODES:
            image = image.convert("RGBA").convert("RGB") if image.mode in ("RGBa", "PA") else image.convert("RGB")
        return np.asarray(image)
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{name} cannot be made an array ({reason(error)}); give one (H, W) or (H, W, C) image.") from error


def to_rgb8(image: np.ndarray, name: str = "image") -> np.ndarray:
    """Show any image to the model as 8-bit RGB.

    uint8 is kept as it is, bool becomes 0 and 255, every other dtype is stretched per channel so that its minimum becomes 0
    and its maximum 255 (a constant channel becomes 0). Grey fills three equal channels, two channels become (a, b, 0), of
    four or five the first three are kept.

    Args:
        image: numeric (H, W), (H, W, C) or (C, H, W) array, C at most 5, or a PIL image; name: what an error calls it.

    Returns:
        uint8 (H, W, 3).

    Raises:
        InputError: another shape, non-numeric, NaN or infinite values, or a path.
    """
    image = as_array(image, name)
    if image.ndim == 3 and image.shape[2] > MAX_CHANNELS >= image.shape[0]:
        image = np.moveaxis(image, 0, -1)  # (C,H,W) -> (H,W,C)
    check_shape(image, name)
    check_numbers(image, name)
    channels = [_stretch(c) for c in (np.moveaxis(image, -1, 0)[:3] if image.ndim == 3 else image[None])]
    if len(channels) == 2:
        channels.append(np.zeros_like(channels[0]))
    return np.stack(channels * (3 // len(channels)), axis=-1)  # 3 x (H,W) -> (H,W,3)


def _stretch(channel: np.ndarray) -> np.ndarray:
    """One (H, W) channel as uint8."""
    if channel.dtype == np.uint8:
        return channel
    if channel.dtype == bool:
        return channel.astype(np.uint8) * np.uint8(255)
    half = channel.astype(np.float64) / 2  # halves, so that the range of extreme floats does not overflow
    low, span = half.min(), half.max() - half.min()
    if span == 0:
        return np.zeros(channel.shape, np.uint8)
    return np.rint((half - low) / span * 255).astype(np.uint8)


@dataclass(frozen=True)
class Square:
    """How an image of height x width pixels lies in a model's square input of size x size pixels.

    `placement` "corner" pads bottom and right (SAM, micro-sam), "center" all around (the official app).
    """

    height: int
    width: int
    size: int
    placement: str = "corner"

    def __post_init__(self) -> None:
        if self.placement not in ("corner", "center"):
            raise InputError(f"placement is {self.placement!r}; use 'corner' or 'center'.")
        if min(self.height, self.width, self.size) < 1:
            raise InputError(f"height, width and size are {self.height}, {self.width} and {self.size}; use at least 1.")

    @property
    def side(self) -> int:
        """Side of the padded image before it is resized, in pixels."""
        return max(self.height, self.width)

    @property
    def scale(self) -> float:
        """Model pixels per image pixel."""
        return self.size / self.side

    @property
    def offset(self) -> tuple[int, int]:
        """(x0, y0) of the image's first pixel in the padded image."""
        if self.placement == "corner":
            return 0, 0
        return (self.side - self.width) // 2, (self.side - self.height) // 2

    def valid_mask(self) -> np.ndarray:
        """Where the model's input shows the image and no padding: bool (size, size)."""
        x0, y0 = self.offset
        edges = ((y0, y0 + self.height), (x0, x0 + self.width))
        rows, columns = (slice(*(round(edge * self.scale) for edge in pair)) for pair in edges)
        mask = np.zeros((self.size, self.size), bool)
        mask[rows, columns] = True
        return mask

    def points_in(self, xy: np.ndarray) -> np.ndarray:
        """Map (..., 2) points from image pixels to model pixels, float32."""
        moved = np.asarray(xy, np.float64) + 0.5 + np.array(self.offset)
        return (moved * self.scale - 0.5).astype(np.float32)

    def points_out(self, xy: np.ndarray) -> np.ndarray:
        """Map (..., 2) points from model pixels to image pixels, float32; the inverse of `points_in`."""
        moved = (np.asarray(xy, np.float64) + 0.5) / self.scale
        return (moved - 0.5 - np.array(self.offset)).astype(np.float32)

    def boxes_in(self, xyxy: np.ndarray) -> np.ndarray:
        """Map (..., 4) boxes (x0, y0, x1, y1) from image pixels to model pixels, float32."""
        boxes = np.asarray(xyxy)
        corners = boxes.reshape(*boxes.shape[:-1], 2, 2)  # (..., 4) -> (..., 2, 2)
        return self.points_in(corners).reshape(boxes.shape)  # (..., 2, 2) -> (..., 4)


def to_square(image: np.ndarray, size: int, placement: str = "corner") -> tuple[np.ndarray, Square]:
    """Zero-pad an image to a square and resize it to the model's side.

    Args:
        image: uint8 (H, W, 3).
        size: S, the model's side in pixels.
        placement: "corner" or "center", see `Square`.

    Returns:
        uint8 (S, S, 3) and the Square that leads back.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"image is {image.dtype} {image.shape}, not uint8 (H, W, 3); use to_rgb8 first.")
    square = Square(image.shape[0], image.shape[1], size, placement)
    x0, y0 = square.offset
    padded = np.zeros((square.side, square.side, 3), np.uint8)
    padded[y0 : y0 + square.height, x0 : x0 + square.width] = image
    if square.side == size:
        return padded, square
    method = cv2.INTER_AREA if square.scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(padded, (size, size), interpolation=method), square


def from_square(logits: torch.Tensor, square: Square) -> torch.Tensor:
    """Mask logits float (I, h, w) of a whole model square -> float (I, H, W) on the image's own grid, bilinear.

    Args:
        logits: of low resolution; square: what `to_square` returned.
    """
    x0, y0 = square.offset
    if logits.shape[0] == 0:
        return logits.new_empty((0, square.height, square.width))
    full = torch.nn.functional.interpolate(logits[None], (square.side, square.side), mode="bilinear", align_corners=False)[0]
    return full[:, y0 : y0 + square.height, x0 : x0 + square.width]  # (I,side,side) -> (I,H,W)
