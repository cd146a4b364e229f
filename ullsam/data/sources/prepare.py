"""Fetch a dataset, convert it, and say under which terms it may be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ullsam.data.sources import readers
from ullsam.data.sources.convert import Item, Writer, prepare, write_corpus
from ullsam.data.sources.fetch import DATASETS, Dataset, by_hand, fetch, fetch_with_torch_em, find, quota
from ullsam.data.sources.open_sets import open_dataset, open_names, read_open
from ullsam.errors import InputError, reason

GROUPS = ("all", "in_domain", "out_of_domain", "open")


def names(word: str) -> list[str]:
    """The datasets that a word of the command line means: a name, or one of `GROUPS`; an InputError where it is neither."""
    if word == "open":
        return open_names()
    if word in GROUPS:
        return [name for name, row in DATASETS.items() if word in ("all", row.role)]
    return [word] if word in open_names() else [find(word).name]


def prepare_dataset(name: str, out: Path, seed: int = 0, say: Callable[[str], None] = print) -> Path:
    """Makes and returns `out`/ROLE/NAME of one dataset, from files that it fetches or that lie in `out`/downloads/NAME.

    If the folder is there already, nothing is done.

    Args:
        name: of the paper's table or of an open set; out: the folder of all datasets, the one that ULLSAM_DATA names.
        seed: of the split and the sample; an open set has a fixed list of images.
        say: gets the licence, the citation and what was made.

    Raises:
        InputError: unknown name, a download fails, or a person has to get the files.
    """
    is_open = name in open_names()
    dataset, facts = open_dataset(name) if is_open else (find(name), find(name).meta())
    folder, downloads = Path(out) / dataset.role / name, Path(out) / "downloads" / name
    if folder.is_dir():
        say(f"{name}: is in {folder} already; delete that folder to make it anew.")
        return folder
    say(f"{dataset.title}\n  licence: {dataset.licence}\n  cite: {dataset.citation}\n  from: {dataset.address}")
    if dataset.warning:
        say(f"  note: {dataset.warning}")
    fetch(dataset, downloads)
    if is_open:
        rows = read_open(name, downloads)

        def fill(writer: Writer) -> None:
            for file, item in rows:
                writer.add(item, item.split, file)

        counts, skipped = write_corpus(folder, facts, fill, downloads)
    else:
        items = _read_items(dataset, downloads)
        counts, skipped = prepare(items, folder, facts, quota(dataset), seed, work=downloads)
    say(f"  made: {folder} with {', '.join(f'{count} {split}' for split, count in counts.items())} images")
    if skipped:
        say(f"  {len(skipped)} images were skipped; meta.json says why. The first: {skipped[0]}")
    return folder


def _read_items(dataset: Dataset, downloads: Path) -> list[Item]:
    """What the dataset's reader finds, or what torch-em can fetch where that is nothing."""
    reader = getattr(readers, dataset.name)
    try:
        items = reader(downloads)
        if not items and fetch_with_torch_em(dataset, downloads):
            items = reader(downloads)
    except InputError:
        raise
    except Exception as error:  # the libraries of the formats raise many kinds where a file is damaged
        text = f"A file of {dataset.title} in {downloads} cannot be read ({reason(error)})"
        raise InputError(f"{text}; delete it and run the same command again.") from error
    if not items:
        raise InputError(f"{dataset.title} is not in {downloads}: {by_hand(dataset, downloads)}")
    return items
