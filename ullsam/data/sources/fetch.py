"""The table of the paper's 19 datasets (paper.json) and how their files come here: downloads that go on where they stopped.

The paper (section 4.1) gives totals only: 20,000 training images of the seven LM sets, 20,000 of the two EM sets, 7,800
images for validation, and no number for the ten out-of-domain sets. How the totals are divided is our choice, see `quota`.
Where a licence is not known, the row says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pooch
import requests

from ullsam.errors import InputError, reason
from ullsam.files import whole_folder

TRAIN_IMAGES = {"LM": 4665, "EM": 10000}  # of each set; three LM sets have some 1340 in all, the other four fill up
BLOCK = 1 << 16  # bytes read at a time; what is lost when the connection drops


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
    # what fetches it where that is installed: module of torch_em.data.datasets, its function, the function's arguments for
    # each part of the set by the part's folder, and the package that the function needs (kaggle: an account's token, too)
    torch_em: dict = field(default_factory=dict)

    def meta(self) -> dict:
        """The facts for a corpus's meta.json."""
        return {key: value for key, value in asdict(self).items() if key not in ("files", "manual", "torch_em") and value}


DATASETS: dict[str, Dataset] = {
    row["name"]: Dataset(**row | {"files": tuple(Remote(**file) for file in row.get("files", ()))})
    for row in json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
}


def quota(dataset: Dataset) -> dict[str, int]:
    """The most images of each split: with all nine in-domain sets 40,000 for training and 7,800 for testing."""
    if dataset.role == "out_of_domain":
        return {"ood": 1000}
    return {"train": TRAIN_IMAGES[dataset.domain], "val": 100, "test": 867}


def find(name: str) -> Dataset:
    """The row of this name; an InputError where there is none."""
    if name not in DATASETS:
        raise InputError(f"There is no dataset {name!r}; choose one of {', '.join(DATASETS)}.")
    return DATASETS[name]


def fetch(dataset: Dataset, folder: Path) -> None:
    """Brings a dataset's original files into a folder, unpacked; what a person put there is used, too."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}); name another folder with --out.") from error
    for remote in dataset.files:
        target = folder / remote.name
        if target.suffix != ".zip" or not target.with_suffix("").is_dir():  # an unpacked archive may be deleted
            download(remote, folder)
    for archive in sorted(folder.glob("*.zip")):
        if archive.with_suffix("").is_dir():
            continue
        try:
            with zipfile.ZipFile(archive) as file, whole_folder(archive.with_suffix("")) as target:
                file.extractall(target)
        except (zipfile.BadZipFile, EOFError) as error:
            raise InputError(f"{archive} is damaged ({error}); delete it and run the same command again.") from error
        except OSError as error:
            text = f"{archive} could not be unpacked ({error.strerror}); free some space and try again."
            raise InputError(text) from error


@dataclass
class ResumingDownloader:
    """A downloader for pooch that keeps what it has got in `part` and asks the server for the rest only."""

    part: Path
    verify: bool = True
    tries: int = 4
    timeout: float = 60.0  # seconds

    def __call__(self, url: str, output_file, pooch_object, check_only: bool = False) -> None:
        for left in reversed(range(self.tries)):
            try:
                self._append(url)
                break
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
                if left == 0:
                    raise
        os.replace(self.part, output_file)

    def _append(self, url: str) -> None:
        have = self.part.stat().st_size if self.part.is_file() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, stream=True, headers=headers, verify=self.verify, timeout=self.timeout) as answer:
            if have and answer.status_code == 416:  # all of it is here, or the file has changed: start again
                self.part.unlink()
                return self._append(url)
            answer.raise_for_status()
            with self.part.open("ab" if answer.status_code == 206 else "wb") as file:
                for block in answer.iter_content(BLOCK):
                    file.write(block)


def download(remote: Remote, folder: Path) -> Path:
    """Gets one file, or finds it there already.

    Args:
        remote: its address and sha256; folder: where it goes, made if it is missing.

    Raises:
        InputError: no connection, another content than expected, or a full disk; what came stays for the next try.
    """
    path = folder / remote.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if remote.sha256 is None and path.is_file():
        return path
    downloader = ResumingDownloader(path.with_name(f".{path.name}.part"), remote.verify)
    known = remote.sha256 and f"sha256:{remote.sha256}"
    again, hint = "run the same command again", f"or download it yourself to {path}"
    try:
        return Path(pooch.retrieve(remote.url, known, path.name, path.parent, downloader=downloader))
    except requests.RequestException as error:
        why = reason(error)[:200]
        if isinstance(error, requests.Timeout):  # of connecting, too
            why = "the server does not answer"
        elif isinstance(error, requests.exceptions.SSLError):
            why = "its certificate is not valid"
        elif isinstance(error, requests.ConnectionError):  # what requests says of it is a page of its insides
            why = "no connection"
        text = f"{remote.url} could not be downloaded ({why}); {again}, it goes on where it stopped, {hint}."
        raise InputError(text) from error
    except ValueError as error:
        text = f"{remote.url} gave another file than expected (its sha256 differs); {again}, {hint}."
        raise InputError(text) from error
    except OSError as error:
        raise InputError(f"{path} could not be written ({error.strerror}); free some space and {again}.") from error


def fetch_with_torch_em(dataset: Dataset, folder: Path) -> bool:
    """Lets torch-em fetch a set into `folder`/torch_em; False where it or what it needs is not installed.

    Parts that are whole wait in a folder beside `folder` until all are there, so that no reader sees half of a set.
    """
    how = dataset.torch_em
    if not how or not all(importlib.util.find_spec(name) for name in ("torch_em", how["needs"])):
        return False
    waiting = folder.with_name(f".{folder.name}.fetching")
    try:
        get = getattr(importlib.import_module(f"torch_em.data.datasets.{how['module']}"), how["function"])
        for part, arguments in how["parts"].items():
            if not (waiting / part).is_dir():
                with whole_folder(waiting / part) as target:
                    get(str(target), **arguments, download=True)
        os.replace(waiting, folder / "torch_em")
    except (Exception, SystemExit) as error:  # whatever torch-em, gdown or kaggle raise
        why = reason(error)[:200]
        raise InputError(f"{dataset.name} could not be fetched by torch-em ({why}); {by_hand(dataset, folder)}") from error
    return True


def by_hand(dataset: Dataset, folder: Path) -> str:
    """The one sentence on how to get a set without us."""
    steps = dataset.manual.format(folder=folder) or f"download it from {dataset.address} into {folder}"
    return f"{steps}; then run the same command again."
