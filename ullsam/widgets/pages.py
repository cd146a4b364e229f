"""The image of a click session: pages of a stack, channels, what the model gets and what the screen gets."""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from ullsam.data.decode import MAX_CHANNELS, count_pages, decode, open_tiff
from ullsam.data.io import as_array, as_labels, read_image, to_rgb8
from ullsam.errors import InputError

SAMPLE = 1024  # percentiles are taken from at most about this many rows and columns
KEPT = 4  # decoded pages of a file that are kept at hand
MICRO = ("µm", "\u03bcm", "\\u00b5m", "um", "micron", "microns", "micrometer")  # two code points, and ImageJ escapes it
MICROMETRES = dict.fromkeys(MICRO, 1.0) | {"nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}  # in a unit

PRINTING = (72, 75, 90, 96, 100, 120, 144, 150, 180, 192, 200, 220, 240, 250, 266, 288, 300, 350, 360, 400, 450, 500, 600)
PRINTING = (*PRINTING, 720, 800, 1000, 1200, 1440, 2400, 4800)  # dots per inch that programs, printers and scanners write


@dataclass(frozen=True)
class Display:
    """How an image is brought to the screen; nothing of it reaches the model."""

    low: float = 0.0  # percentile that becomes black
    high: float = 100.0  # percentile that becomes white
    gamma: float = 1.0  # above 1 brightens the middle

    def __post_init__(self):
        numbers = all(isinstance(v, (int, float)) and np.isfinite(v) for v in (self.low, self.high, self.gamma))
        if not numbers or not 0 <= self.low < self.high <= 100 or not 0.05 <= self.gamma <= 20:
            values = f"Contrast from {self.low} to {self.high} with gamma {self.gamma}"
            remedy = "give percentiles 0 <= low < high <= 100 and a gamma from 0.05 to 20"
            raise InputError(f"{values} cannot be shown; {remedy}.")


class Pages:
    """One image or a stack of them, from memory or read page by page from a file.

    Args:
        image: (H, W) or (H, W, C), with `stack` (Z, H, W) or (Z, H, W, C); or the path of an image file.

    Raises:
        InputError: no image, or not one of a usable shape.
    """

    def __init__(self, image: np.ndarray | str | Path, stack: bool = False):
        self.path = Path(image) if isinstance(image, (str, Path)) else None
        self.name = self.path.stem if self.path else "image"  # what files made from it are called
        self.file = self.path.name if self.path else ""
        if self.path is not None:
            self.count, read = count_pages(self.path), lambda z: read_image(self.path, z)
        else:
            array = as_array(image)
            if stack and (array.ndim not in (3, 4) or not len(array)):
                raise InputError(f"The stack has shape {array.shape}; give (Z, H, W) or (Z, H, W, C) with Z pages.")
            self.count, read = (len(array), lambda z: array[z]) if stack else (1, lambda z: array)
        self._read = lru_cache(KEPT)(read)

    def page(self, z: int) -> np.ndarray:
        """(H, W) or (H, W, C) in its own numbers; `InputError` where there is no such page, or no usable image in it."""
        if not is_index(z, self.count):
            raise InputError(f"There is no page {z}; the image has {self.count}, numbered from 0.")
        image = self._read(int(z))
        if image.ndim == 3 and image.shape[2] > MAX_CHANNELS >= image.shape[0]:
            return np.moveaxis(image, 0, -1)  # (C, H, W) -> (H, W, C), as in `to_rgb8`
        return image

    def values(self, z: int) -> np.ndarray:
        """The numbers of a page to measure: those of `page`, but what a tif stores where `page` looks its colours up."""
        image = self.page(z)
        if self.path is None or image.dtype != np.uint8 or image.shape[2:] != (3,):
            return image
        return decode(self.path, int(z), table=False)

    def channels(self, z: int) -> tuple[str, ...]:
        """Names of the channels to choose from; none for a grey image."""
        image = self.page(z)
        if image.ndim == 2 or image.shape[2] == 1:
            return ()
        rgb = image.dtype == np.uint8 and image.shape[2] == 3
        return ("red", "green", "blue") if rgb else tuple(f"channel {c + 1}" for c in range(image.shape[2]))

    def view(self, z: int, channel: int | None) -> np.ndarray:
        """A page, or one channel of it as (H, W); `InputError` where the page has no such channel."""
        image, names = self.page(z), self.channels(z)
        if channel is None:
            return image
        if not is_index(channel, len(names)):
            choice = f"the page has {len(names)} to choose from, numbered from 0, or None for all together"
            raise InputError(f"There is no channel {channel}; {choice}.")
        return image[..., channel]

    @cached_property
    def sha(self) -> str:
        """Fingerprint of the numbers of the first, the middle and the last page, and of the number of pages."""
        digest = hashlib.sha256(str(self.count).encode())
        for z in sorted({0, self.count // 2, self.count - 1}):
            page = self.page(z)
            digest.update(f"{page.dtype.str}{page.shape}".encode() + np.ascontiguousarray(page).tobytes())
        return digest.hexdigest()

    @cached_property
    def pixel_size(self) -> tuple[float, float] | None:
        """(width, height) of a pixel in micrometres as the file tells it; None where it does not."""
        return read_pixel_size(self.path) if self.path else None

    def read_labels(self, source: np.ndarray | str | Path, page: int) -> dict[int, np.ndarray]:
        """Label maps int32 (H, W) by page: one for `page`, or one for each page if the source has as many.

        Args:
            source: integers (H, W), a stack (Z, H, W), or the path of such an image; `InputError` if its size is another.
        """
        if isinstance(source, (str, Path)):
            count = count_pages(source)
            if count not in (1, self.count):
                raise InputError(f"{source} has {count} pages but the image has {self.count}; give one or as many.")
            given = [decode(source, z, labels=True) for z in range(count)]
        else:
            given = np.asarray(source)
            given = list(given) if given.ndim == 3 and len(given) == self.count else [given]
        found = dict(zip(range(self.count) if len(given) > 1 else [page], given, strict=True))
        for z, labels in found.items():
            size = self.page(z).shape[:2]
            if labels.shape != size:
                sizes = f"shape {labels.shape} but page {z} has {size[0]} rows and {size[1]} columns"
                raise InputError(f"The label image has {sizes}; give one number for each of its pixels.")
        return {z: as_labels(labels, "The label image") for z, labels in found.items()}


def is_index(value, count: int) -> bool:
    """A whole number from 0 to count - 1."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= value < count


def display(image: np.ndarray, how: Display) -> np.ndarray:
    """uint8 RGB (H, W, 3) for the screen; with the default the picture is that of `to_rgb8`.

    Colours of an 8-bit RGB image keep their ratio, channels of other images are stretched each for itself.
    """
    if how == Display():
        return to_rgb8(image)
    whole = image.ndim == 2 or image.dtype == np.uint8
    stretched = []
    for plane in [image] if whole else np.moveaxis(image, -1, 0)[:3]:
        values = plane.astype(np.float32)
        steps = tuple(slice(None, None, max(1, side // SAMPLE)) for side in plane.shape[:2])
        low, high = np.percentile(values[steps], (how.low, how.high))
        if plane.dtype == np.uint8:  # percentiles 0 and 100 are the ends of to_rgb8's range
            low, high = 0.0 if how.low == 0 else low, 255.0 if how.high == 100 else high
        fraction = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
        stretched.append(np.rint(255 * fraction ** (1 / how.gamma)).astype(np.uint8))
    return to_rgb8(stretched[0] if len(stretched) == 1 else np.stack(stretched, axis=-1))  # 3 x (H, W) -> (H, W, 3)


def read_pixel_size(path: Path) -> tuple[float, float] | None:
    """(width, height) of a pixel in micrometres from a tif's OME, ImageJ or centimetre tags; None without usable ones.

    Dots per inch are no measure, also where they are stored in centimetres: most programs write some.
    """
    try:
        with open_tiff(path) as tif:
            tags = tif.pages[0].tags
            if tif.is_ome:
                pixels = ElementTree.fromstring(tif.ome_metadata).find(".//{*}Pixels")
                pairs = [(pixels.get(f"PhysicalSize{a}"), pixels.get(f"PhysicalSize{a}Unit", "µm")) for a in "XY"]
                size = tuple(float(value) * MICROMETRES[unit.lower()] for value, unit in pairs)
            else:
                in_centimetres = "ResolutionUnit" in tags and tags["ResolutionUnit"].value == 3
                unit = str(tif.imagej_metadata["unit"]).lower() if tif.is_imagej else "cm" if in_centimetres else ""
                pairs = [tags[f"{a}Resolution"].value for a in "XY"]  # pixels per unit, as a fraction
                size = tuple(MICROMETRES[unit] * below / above for above, below in pairs)
            size = size[::-1] if tags.valueof(274, 1) in (5, 6, 7, 8) else size  # the page is turned on its side
    except Exception:  # another format, or tags that say nothing: the image can be used without
        return None
    usable = all(np.isfinite(s) and s > 0 and min(abs(1e4 / s - dpi / 2.54) for dpi in PRINTING) > 0.5 for s in size)
    return size if usable else None
