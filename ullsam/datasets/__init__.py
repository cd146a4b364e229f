"""The paper's 19 datasets, the open sets behind the shipped weights, and image-text pairs, as folders of `ullsam.Corpus`."""

from ullsam.datasets.convert import Item
from ullsam.datasets.prepare import prepare_dataset
from ullsam.datasets.table import DATASETS, Dataset

__all__ = ["DATASETS", "Dataset", "Item", "prepare_dataset"]
