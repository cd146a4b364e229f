"""Instances of one image as plain arrays and names, which every export starts from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ullsam.widgets.instances import Region, regions

PLAIN_NAME = "object"  # of instances that nobody has named


@dataclass(frozen=True, eq=False)
class Annotations:
    """Instances of one image or stack. Pages without an instance may be left out of the dictionaries."""

    name: str  # what the files are called
    images: dict[int, np.ndarray]  # by page from 0: (H, W) or (H, W, C) in the image's own numbers
    labels: dict[int, np.ndarray]  # integer (H, W), 0 background, numbers unique in all pages
    names: dict[int, str]  # of the numbers
    shown: dict[int, np.ndarray] | None = None  # uint8 RGB (H, W, 3) for pictures; None: made of `images`
    count: int = 1  # pages of the image
    pixel_size: tuple[float, float] | None = None  # width and height in micrometres
    file: str = ""  # name of the image's file, if it has one

    def page_name(self, page: int) -> str:
        """Name of one page's files."""
        return self.name if self.count == 1 else f"{self.name}_page{page + 1:03d}"

    def objects(self) -> Iterator[tuple[int, int, str, Region]]:
        """(page, number, name, pixels) of each instance."""
        for page in sorted(self.labels):
            for number, region in regions(self.labels[page]).items():
                yield page, number, self.names.get(number, PLAIN_NAME), region
