"""The paper's 19 datasets: what they show, where they are, under which licence, how to cite them (paper.json).

The paper (section 4.1) gives totals only: 20,000 training images of the seven LM sets, 20,000 of the two EM sets, 7,800
images for validation, and no number for the ten out-of-domain sets. How the totals are divided is our choice, see `quota`.
Where a licence is not known, the row says so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ullsam.errors import InputError

TRAIN_SHARE = {"LM": 4665, "EM": 10000}  # three LM sets have some 1340 images in all; the other four share the rest


@dataclass(frozen=True)
class Remote:
    """One file to download."""

    url: str
    name: str  # of the file in the downloads folder
    sha256: str | None = None  # None: not known, or the server packs the archive anew each time
    verify: bool = True  # False: the server's certificate is invalid; only together with a sha256


@dataclass(frozen=True)
class Dataset:
    """One row of the table."""

    name: str
    title: str
    role: str  # "in_domain" or "out_of_domain" in the paper
    domain: str  # LM, EM, histopathology or medical
    modality: str
    specimen: str
    structure: str
    description: str
    licence: str
    citation: str
    address: str
    files: tuple[Remote, ...] = ()
    manual: str = ""  # how to get it by hand, where it needs an account or a person; {folder} is where it goes
    warning: str = ""

    def meta(self) -> dict:
        """The facts for a corpus's meta.json."""
        return {key: value for key, value in asdict(self).items() if key not in ("files", "manual") and value}


def _read_table(path: Path) -> dict[str, Dataset]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    files = [tuple(Remote(**file) for file in row.pop("files", ())) for row in rows]
    return {row["name"]: Dataset(files=remote, **row) for row, remote in zip(rows, files, strict=True)}


DATASETS = _read_table(Path(__file__).with_name("paper.json"))


def quota(dataset: Dataset) -> dict[str, int]:
    """The most images of each split: with all nine in-domain sets 40,000 for training and 7,800 for testing."""
    if dataset.role == "out_of_domain":
        return {"ood": 1000}
    return {"train": TRAIN_SHARE[dataset.domain], "val": 100, "test": 867}


def find(name: str) -> Dataset:
    """The row of this name.

    Raises:
        InputError: there is none.
    """
    if name not in DATASETS:
        raise InputError(f"There is no dataset {name!r}; choose one of {', '.join(DATASETS)}.")
    return DATASETS[name]
