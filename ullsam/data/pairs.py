"""Images with written captions: captions.jsonl of a corpus, and folders that hold pairs without masks."""

from pathlib import Path

import numpy as np

from ullsam.data.corpus import Corpus, Record, Sample
from ullsam.data.io import read_image, to_rgb8
from ullsam.errors import InputError


class Pairs(Corpus):
    """A folder with images/ and captions.jsonl but without masks, for stages 1 and 2 only.

    Every image counts as one object that fills it, so that a training view shows all of it.

    Raises:
        InputError: the folder has no captions.
    """

    def __init__(self, folder: str | Path):
        super().__init__(folder)
        if not self.captions:
            raise InputError(
                f"{self.folder} has no captions.jsonl; make it with `python -m ullsam prepare-pairs` or `caption`."
            )
        self.records = [record for record in self.records if record.file in self.captions]

    def read(self, record: Record) -> Sample:
        """The image of one record with its caption in `meta`."""
        image = to_rgb8(read_image(record.image_path), str(record.image_path))
        facts = {"file": record.file, "split": record.split, "caption": self.captions[record.file]}
        return Sample(
            image, np.ones(image.shape[:2], np.int32), {**self.meta, **facts}, f"{self.name}/{Path(record.file).stem}"
        )
