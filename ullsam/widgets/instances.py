"""What a click session knows: pixels of objects, saved instances, and the state that each gesture replaces."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import cv2
import numpy as np

from ullsam.errors import InputError
from ullsam.sbr import instance_ids

PLAIN_NAME = "object"  # of instances that nobody has named
LARGEST = np.iinfo(np.uint16).max  # number of an instance that label images of other programs hold
Point = tuple[float, float, int]  # x, y in image pixels, label 1 inside and 0 outside
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in image pixels


@dataclass(frozen=True, eq=False)
class Region:
    """Pixels of one object, cut out of the image so that hundreds of objects and undo steps stay small."""

    x0: int
    y0: int
    pixels: np.ndarray  # bool (h, w), the pixel (x0, y0) of the image first

    @classmethod
    def of(cls, mask: np.ndarray) -> Region:
        """The region of a bool mask (H, W); an empty mask gives a region of no pixels."""
        x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
        return cls(x, y, mask[y : y + height, x : x + width].copy())

    area = property(lambda self: int(np.count_nonzero(self.pixels)), doc="Number of pixels.")

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the region lies in."""
        height, width = self.pixels.shape
        return slice(self.y0, self.y0 + height), slice(self.x0, self.x0 + width)

    @property
    def box(self) -> Box:
        """Outer edges of the outermost pixels, x0, y0, x1, y1."""
        height, width = self.pixels.shape
        return self.x0 - 0.5, self.y0 - 0.5, self.x0 + width - 0.5, self.y0 + height - 0.5

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """bool (H, W) for an image of `size` (H, W)."""
        mask = np.zeros(size, bool)
        mask[self.window] = self.pixels
        return mask


@dataclass(frozen=True, eq=False)
class Instance:
    """One saved object."""

    number: int  # from 1, its value in the label map; unique in all pages
    name: str
    prompts: tuple[Point, ...]
    box: Box | None
    model: str  # name of the model that segmented it, "" for an imported one
    page: int  # from 0
    region: Region
    words: str = ""  # that said what to segment, "" for none

    area = property(lambda self: self.region.area, doc="Number of pixels.")


@dataclass(frozen=True, eq=False)
class State:
    """The object being segmented, how it is segmented, and the instances saved so far; undo goes back to an old one."""

    model: str
    vlk: bool = True  # wished for; a model without VLSA has none
    negatives: bool = False  # with automatic points around the mask
    candidate: int = 0  # 0 the single mask, 1..3 SAM's candidates
    page: int = 0
    channel: int | None = None
    prompts: tuple[Point, ...] = ()
    box: Box | None = None
    words: str = ""  # what to segment; a model that cannot follow them ignores them
    alone: bool = False  # the object is all that the words name, without a prompt
    presence: float | None = None  # how sure the model is that what the words name is there, 0 to 1; None without words
    suggested: tuple[Point, ...] = ()  # the automatic points
    region: Region | None = None  # pixels of the current object
    editing: int | None = None  # number of the instance that is the current object
    instances: tuple[Instance, ...] = ()

    encoding = property(lambda self: (self.model, self.page, self.channel), doc="What the image's features depend on.")

    @property
    def empty(self) -> bool:
        """There is no current object."""
        return not self.prompts and self.box is None and not self.alone and self.editing is None

    def without_object(self, **changes) -> State:
        """The same without a current object; the words stay for the next one."""
        nothing = {"alone": False, "presence": None, "suggested": (), "region": None, "editing": None}
        return replace(self, prompts=(), box=None, **nothing, **changes)

    def find(self, number: int) -> Instance:
        """The instance of this number, or `InputError`."""
        for instance in self.instances:
            if instance.number == number:
                return instance
        numbers = [str(i.number) for i in self.instances] or ["none yet"]
        listed = ", ".join(numbers[:10]) + " ..." * (len(numbers) > 10)
        raise InputError(f"There is no instance {number}; the saved ones are {listed}.")

    def put(self, new: Instance) -> tuple[Instance, ...]:
        """All instances with `new` in the place of the one of its number, or at the end."""
        return tuple(({i.number: i for i in self.instances} | {new.number: new}).values())


def free_numbers(instances: Iterable[Instance], wanted: int = 1) -> Iterator[int]:
    """Numbers for new instances: those after the largest, 1 at first; where too few are left, all free ones from 1."""
    taken = {i.number for i in instances}
    start = max(taken, default=0) + 1
    return (n for n in count(start if start + wanted - 1 <= LARGEST else 1) if n not in taken)


def label_map(instances: Iterable[Instance], page: int, size: tuple[int, int]) -> np.ndarray:
    """int32 (H, W) of one page, 0 background."""
    labels = np.zeros(size, np.int32)
    for instance in instances:
        if instance.page == page:
            labels[instance.region.window][instance.region.pixels] = instance.number
    return labels


def regions(labels: np.ndarray) -> dict[int, Region]:
    """The pixels of each id of a label map, integer (H, W) with 0 background, by ascending id."""
    from scipy.ndimage import find_objects

    ids = instance_ids(labels)
    dense = np.searchsorted(np.append(0, ids), labels)  # (H, W): background 0, objects 1, 2, ...
    windows = find_objects(dense)
    cut = [Region(w[1].start, w[0].start, dense[w] == i) for i, w in enumerate(windows, start=1)]
    return dict(zip(ids.tolist(), cut, strict=True))


def from_labels(labels: np.ndarray, page: int, existing: Sequence[Instance], name: str) -> tuple[Instance, ...]:
    """The objects of a label map, int32 (H, W) with 0 background, as instances of one page with boxes as prompts.

    Pixels of existing instances stay theirs. The ids are kept if none of them is taken and all fit into a 16-bit label
    image, which other programs need; else numbering goes on.

    Raises:
        InputError: there are too many objects.
    """
    found = regions(np.where(label_map(existing, page, labels.shape) == 0, labels, 0))
    taken = {i.number for i in existing}
    if len(found) + len(taken) > LARGEST:
        raise InputError(f"The label image has {len(found)} objects and an image holds {LARGEST}; crop the image.")
    kept = taken.isdisjoint(found) and max(found, default=0) <= LARGEST
    rows = zip(found if kept else free_numbers(existing, len(found)), found.values(), strict=False)
    return tuple(Instance(number, name, (), region.box, "", page, region) for number, region in rows)


def file_name(name: str, longest: int = 180) -> str:
    """A name for files made from a file of this name: text of at most `longest` bytes, a changed one told by a digest."""
    text = re.sub(r"[\ud800-\udfff]", "_", name)  # bytes that are no UTF-8
    if text == name and len(text.encode()) <= longest:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{text.encode()[:longest].decode(errors='ignore')}-{digest}"


@dataclass(frozen=True, eq=False)
class Annotations:
    """Instances of one image or stack as plain arrays and names, which every export starts from.

    Pages without an instance may be left out of the dictionaries.
    """

    name: str  # what the files are called
    images: dict[int, np.ndarray]  # by page from 0: (H, W) or (H, W, C), as the model got them
    labels: dict[int, np.ndarray]  # integer (H, W), 0 background, numbers unique in all pages
    names: dict[int, str]  # of the numbers; also the class of an instance
    pictures: dict[int, np.ndarray] | None = None  # uint8 RGB (H, W, 3) for overlays; None: made of `images`
    values: dict[int, np.ndarray] | None = None  # to be measured, where these are other numbers than those of `images`
    count: int = 1  # pages of the image
    pixel_size: tuple[float, float] | None = None  # width and height in micrometres
    file: str = ""  # name of the image's file, if it has one
    sha: str = ""  # fingerprint of the image, see `Pages.sha`
    axes: dict[str, int] = field(default_factory=dict)  # of a tif, see `export.stack_axes`
    words: dict[int, str] = field(default_factory=dict)  # of the numbers that were segmented with words

    def page_name(self, page: int) -> str:
        """Name of one page's files."""
        return self.name if self.count == 1 else f"{self.name}_page{page + 1:03d}"

    def objects(self) -> Iterator[tuple[int, int, str, Region]]:
        """(page, number, name, pixels) of each instance."""
        for page in sorted(self.labels):
            for number, region in regions(self.labels[page]).items():
                yield page, number, self.names.get(number, PLAIN_NAME), region
