"""Which images of a corpus a measurement runs over, and the bar that shows how far it is."""

from __future__ import annotations

from ullsam.data.corpus import Corpus, Record, spaced
from ullsam.errors import InputError


def select_records(corpus: Corpus, split: str | None, seed: int, limit: int | None) -> list[tuple[int, Record]]:
    """Records of the split with their places in the corpus; `limit` of them, evenly spaced.

    Raises:
        InputError: an unknown split, a negative seed, or a limit below 1.
    """
    if seed < 0 or (limit is not None and limit < 1):
        raise InputError(f"seed is {seed} and limit {limit}; give a seed of 0 or more and a limit of 1 or more.")
    wanted = set(corpus.select(split))
    chosen = [(index, record) for index, record in enumerate(corpus.records) if record in wanted]
    return spaced(chosen, limit)


def progress_bar(chosen: list, corpus: Corpus, shown: bool):
    """The items themselves; while they are gone through, a bar on standard error if `shown`."""
    from tqdm import tqdm

    return tqdm(chosen, desc=folder_name(corpus), unit="image", disable=not shown)


def folder_name(corpus: Corpus) -> str:
    """The folder's own name, without where it lies."""
    return corpus.folder.resolve().name
