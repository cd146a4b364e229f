"""Images, masks and datasets."""

from ullsam.data.augment import TrainViews, ViewConfig
from ullsam.data.corpus import Corpus, Record, Sample, data_root, find_corpora
from ullsam.data.io import Square, from_square, read_image, read_labels, to_rgb8, to_square, write_labels
from ullsam.data.mixture import Mixture

__all__ = [
    "Corpus",
    "Mixture",
    "Record",
    "Sample",
    "Square",
    "TrainViews",
    "ViewConfig",
    "data_root",
    "find_corpora",
    "from_square",
    "read_image",
    "read_labels",
    "to_rgb8",
    "to_square",
    "write_labels",
]
