"""The paper's 19 datasets, the open sets behind the shipped weights, and image-text pairs, as folders of `ullsam.Corpus`."""

from ullsam.data.sources.fetch import DATASETS

__all__ = ["DATASETS"]
