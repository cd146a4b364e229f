"""The paper's 19 datasets, the open sets behind the shipped weights, and image-text pairs, as folders of `ullsam.Corpus`."""

from ullsam.data.sources.convert import Item
from ullsam.data.sources.fetch import DATASETS, Dataset
from ullsam.data.sources.prepare import prepare_dataset

__all__ = ["DATASETS", "Dataset", "Item", "prepare_dataset"]
