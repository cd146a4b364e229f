"""Saved objects of a click session: their pixels, and what each is called and was made with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

import cv2
import numpy as np

from ullsam.errors import InputError
from ullsam.sbr import instance_ids

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

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.pixels))

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

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.region.area


def find(instances: Sequence[Instance], number: int) -> Instance:
    """The instance of this number.

    Raises:
        InputError: there is none.
    """
    for instance in instances:
        if instance.number == number:
            return instance
    raise InputError(f"There is no instance {number}; the saved ones are {_listed(instances)}.")


def _listed(instances: Sequence[Instance]) -> str:
    numbers = [str(i.number) for i in instances]
    return ", ".join(numbers[:10]) + (" ..." if len(numbers) > 10 else "") if numbers else "none yet"


def put(instances: Sequence[Instance], new: Instance) -> tuple[Instance, ...]:
    """All instances with `new` in the place of the one of its number, or at the end."""
    if all(old.number != new.number for old in instances):
        return (*instances, new)
    return tuple(new if old.number == new.number else old for old in instances)


def next_number(instances: Iterable[Instance]) -> int:
    """One more than the largest number, 1 at first."""
    return 1 + max((i.number for i in instances), default=0)


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
    """The objects of a label map as instances, with their bounding boxes as prompts.

    Pixels of existing instances stay theirs. The ids are kept if none of them is taken, else numbering goes on.

    Args:
        labels: int32 (H, W), 0 background.
        page, name: of every new instance.
    """
    found = regions(np.where(label_map(existing, page, labels.shape) == 0, labels, 0))
    taken = any(i.number in found for i in existing)
    numbers = count(next_number(existing)) if taken else found
    rows = zip(numbers, found.values(), strict=False)
    return tuple(Instance(number, name, (), region.box, "", page, region) for number, region in rows)
