"""Images with written captions but without masks, and which datasets of a folder a training stage draws from."""

from pathlib import Path

import numpy as np

from ullsam.data.corpus import Corpus, Record, Sample, find_corpora
from ullsam.data.io import read_image, to_rgb8
from ullsam.errors import InputError


class Pairs(Corpus):
    """A folder with images/ and captions.jsonl but without masks/, as `prepare-pairs` leaves it, for stages 1 and 2.

    Images without a caption are passed over. Every image counts as one object that fills it, so that a training view
    shows all of it: `TrainViews` leaves a view with a written caption as it is, and the caption stays true. A folder without
    captions of its images is an InputError.
    """

    def __init__(self, folder: str | Path):
        super().__init__(folder)
        if not self.captions:
            remedy = "make it with `python -m ullsam prepare-pairs` or `caption`"
            raise InputError(f"{self.folder} has no captions.jsonl; {remedy}.")
        self.records = [record for record in self.records if record.file in self.captions]
        if not self.records:
            raise InputError(f"No line of {self.folder / 'captions.jsonl'} names a file of images/; make the folder again.")

    def read(self, record: Record) -> Sample:
        """The image of one record with its caption in `meta`."""
        image = to_rgb8(read_image(record.image_path, page=None), str(record.image_path))
        facts = {"file": record.file, "split": record.split, "caption": self.captions[record.file]}
        whole = np.ones(image.shape[:2], np.int32)
        return Sample(image, whole, {**self.meta, **facts}, f"{self.name}/{Path(record.file).with_suffix('')}")


def holds_pairs(folder: str | Path) -> bool:
    """Whether a folder holds image-text pairs: images/ and captions.jsonl, and no masks/."""
    folder = Path(folder)
    return (folder / "images").is_dir() and (folder / "captions.jsonl").is_file() and not (folder / "masks").is_dir()


def training_sources(root: str | Path, pairs: bool) -> list[tuple[Corpus, str | None]]:
    """The datasets that a training stage draws from, each with the split to use, as `Mixture` takes them.

    Args:
        root: one dataset (with images/ inside), or the folder of all datasets, whose in_domain/ is used.
        pairs: True where the stage learns captions, so that folders of image-text pairs serve, too.

    Returns:
        Pairs and Corpus objects, each with "train", or with None if its images have no splits.

    Raises:
        InputError: no dataset, one that has splits but no "train", or pairs for a stage that needs masks.
    """
    root, sources = Path(root), []
    for corpus in [Corpus(root)] if (root / "images").is_dir() else find_corpora(root, "in_domain"):
        if holds_pairs(corpus.folder):
            if not pairs:
                only = "which only stages 1 and 2 can learn from; name folders with images/ and masks/"
                raise InputError(f"{corpus.folder} holds image-text pairs without masks, {only}.")
            corpus = Pairs(corpus.folder)
        split = "train" if corpus.splits else None
        corpus.select(split)
        sources.append((corpus, split))
    return sources
