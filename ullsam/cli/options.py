"""What several commands share: images to measure on, options that exclude each other, the words that were typed."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, is_dataclass
from pathlib import Path

from ullsam.errors import InputError

OR_ZERO = ("stage", "seed", "lr", "warmup", "view", "workers", "lora", "synthetic_fraction", "tolerance", "points")
MOST = {"port": 2**16 - 1, "synthetic_fraction": 1, "count": 10**6}  # of any other option 2**31 - 1
Name = str | None  # of a file, a folder or a part of a dataset; None where the option is left out
WORDS: ContextVar[Sequence[str]] = ContextVar("words", default=())  # what was typed behind `python -m ullsam`


@dataclass(frozen=True)
class Measured:
    """Which model is measured on which images, and where the results go."""

    data: list[str]  # folders with images/ and masks/
    out: str  # file for the results (JSON; of worst: PNG)
    model: str = "tiny"  # tiny, usam-tiny, or a folder of a saved model
    split: str | None = None  # only this split of images.csv, for example test; all images without it
    seed: int = 0  # of everything that is drawn
    limit: int | None = None  # at most so many images per folder, evenly spaced; all without it

    def corpora(self, *splits: str) -> list:
        """A Corpus for each folder; folders, their splits and --out are checked before anything runs."""
        from ullsam.data.corpus import Corpus

        if not self.data:
            raise InputError("--data names no folder; give at least one with images/ and masks/.")
        file_to_write(self.out, "results.json")
        corpora = [Corpus(folder) for folder in self.data]
        for split in (self.split, *splits):
            for corpus in corpora:
                corpus.select(split)
        return corpora

    @property
    def rows(self) -> str | None:
        """Where rows are kept while they are made, see `Kept`; nowhere beside a device such as /dev/null."""
        return f"{self.out}.rows" if Path(self.out).is_file() or not Path(self.out).exists() else None

    def write(self, results: list[dict], summarise: Callable, mean: Callable | None = None) -> None:
        """Writes the results, their `mean` and the command that made them, and prints the table that `summarise` makes."""
        from ullsam.evaluation.statistics import format_table, report
        from ullsam.files import write_json

        if is_main():
            results = [result | {"model": Path(self.model).resolve().name} for result in results]
            write_json(self.out, report(results, typed(self.data), mean))
            for file in glob.glob(f"{glob.escape(self.out)}.rows.*"):
                Path(file).unlink()
            print(f"{format_table(summarise(results))}\nwritten to {self.out}")


def load_here(model: str):
    """A saved model on this process's device."""
    from ullsam.accel.distributed import device
    from ullsam.checkpoints.loading import load

    return load(model, device=device())


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    from ullsam.accel.distributed import distributed_state

    return distributed_state().is_main_process


def file_to_write(out: str, example: str) -> Path:
    """The path of --out, whose folder is made; raises InputError where it is a folder itself."""
    if Path(out).is_dir():
        raise InputError(f"--out {out} is a folder; name a file, for example {Path(out) / example}.")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    return Path(out)


def check_numbers(**options) -> None:
    """Raises InputError for a number that no command can use, such as 0 images, before anything is loaded."""
    for name, value in options.items():
        if is_dataclass(value):
            check_numbers(**vars(value))
        for x in value if isinstance(value, tuple) else (value,):
            if isinstance(x, (int, float)) and not isinstance(x, bool):
                least = 0 if name in OR_ZERO else 1 if isinstance(x, int) else 1e-6
                if not least <= x <= MOST.get(name, 2**31 - 1):  # NaN too
                    ends = f"from {least} to {MOST.get(name, 2**31 - 1)}"
                    raise InputError(f"--{name.replace('_', '-')} is {x}; give a number {ends}.")


def one_of(**options) -> None:
    """Raises InputError where more than one of these options is given."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other; give one of them.")


def short(word: str) -> str:
    """A full path by its last part, so that results tell nothing about the machine; any other word unchanged."""
    return Path(word).name if Path(word).is_absolute() else word


def typed(folders: Iterable[str] = ()) -> str:
    """The command line as it was typed, with the last two parts of each of the folders and the last of other full paths."""
    known = {folder: "/".join(Path(folder).resolve().parts[-2:]) for folder in folders}
    return shlex.join(["python", "-m", "ullsam", *(known.get(word) or short(word) for word in WORDS.get())])
