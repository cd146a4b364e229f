"""Downloads that go on where they stopped, and archives unpacked in one step."""

from __future__ import annotations

import importlib.util
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pooch
import requests

from ullsam.data.sources.table import Dataset, Remote
from ullsam.errors import InputError, reason

BLOCK = 1 << 16  # bytes read at a time; what is lost when the connection drops


class ResumingDownloader:
    """A downloader for pooch that keeps what it has got in `part` and asks the server for the rest only."""

    def __init__(self, part: Path, verify: bool = True, tries: int = 4, timeout: float = 60.0):
        self.part, self.verify, self.tries, self.timeout = part, verify, tries, timeout

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
        headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
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

    Returns:
        Its path.

    Raises:
        InputError: no connection, another content than expected, or a full disk; what came stays for the next try.
    """
    path = folder / remote.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if remote.sha256 is None and path.is_file():
        return path
    downloader = ResumingDownloader(path.with_name(f".{path.name}.part"), remote.verify)
    known = remote.sha256 and f"sha256:{remote.sha256}"
    by_hand = f"or download it yourself to {path}"
    try:
        return Path(pooch.retrieve(remote.url, known, path.name, path.parent, downloader=downloader))
    except requests.RequestException as error:
        raise InputError(
            f"{remote.url} could not be downloaded ({_why(error)}); run the same command again, it goes on "
            f"where it stopped, {by_hand}."
        ) from error
    except ValueError as error:
        raise InputError(
            f"{remote.url} gave another file than expected (its sha256 differs); run the same command again, {by_hand}."
        ) from error
    except OSError as error:
        raise InputError(
            f"{path} could not be written ({error.strerror}); free some space and run the same command again."
        ) from error


def _why(error: requests.RequestException) -> str:
    """What went wrong in a few words; what requests says of a missing connection is a page of its insides."""
    if isinstance(error, requests.Timeout):  # of connecting, too
        return "the server does not answer"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not valid"
    return "no connection" if isinstance(error, requests.ConnectionError) else reason(error)[:200]


def unpack(folder: Path) -> None:
    """Unpacks every zip file of a folder beside it, into a folder of its name, unless that is there.

    Raises:
        InputError: a zip file is damaged, or the disk is full.
    """
    for archive in sorted(folder.glob("*.zip")):
        target = archive.with_suffix("")
        if target.is_dir():
            continue
        try:
            with zipfile.ZipFile(archive) as file:
                _whole_folder(target, file.extractall)
        except (zipfile.BadZipFile, EOFError) as error:
            raise InputError(f"{archive} is damaged ({error}); delete it and run the same command again.") from error
        except OSError as error:
            raise InputError(
                f"{archive} could not be unpacked ({error.strerror}); free some space and try again."
            ) from error


def _whole_folder(target: Path, fill: Callable[[str], object]) -> None:
    """Makes the folder `target` of what `fill` writes into the folder it is given, or leaves nothing."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        fill(str(partial))
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _plantseg(folder: Path) -> Iterable[tuple[Path, Callable[[str], object]]]:
    from torch_em.data.datasets.light_microscopy.plantseg import get_plantseg_data

    for name in ("root", "ovules"):
        for split in ("train", "val", "test"):
            yield folder / name / split, lambda path, n=name, s=split: get_plantseg_data(path, n, s, download=True)


def _nucmm(folder: Path) -> Iterable[tuple[Path, Callable[[str], object]]]:
    from torch_em.data.datasets.electron_microscopy.nuc_mm import get_nuc_mm_data

    yield folder / "gdrive", lambda path: get_nuc_mm_data(path, "mouse", download=True)


def _glas(folder: Path) -> Iterable[tuple[Path, Callable[[str], object]]]:
    from torch_em.data.datasets.histopathology.glas import get_glas_data

    yield folder / "kaggle", lambda path: get_glas_data(path, "test", download=True)


def _consep(folder: Path) -> Iterable[tuple[Path, Callable[[str], object]]]:
    from torch_em.data.datasets.histopathology.consep import get_consep_data

    yield folder / "kaggle", lambda path: get_consep_data(path, download=True)


# dataset -> what torch-em fetches for it, and the module that it needs for that (an account's token for kaggle, too)
TORCH_EM = {
    "plantseg": (_plantseg, "torch_em"),
    "nucmm": (_nucmm, "gdown"),
    "glas": (_glas, "kaggle"),
    "consep": (_consep, "kaggle"),
}


def fetch_with_torch_em(dataset: Dataset, folder: Path) -> bool:
    """Lets torch-em fetch a set into `folder`/torch_em; False where it or what it needs is not installed.

    Parts that are whole wait in a folder beside `folder` until all are there, so that no reader sees half of a set.

    Raises:
        InputError: torch-em could not fetch it.
    """
    parts, needs = TORCH_EM.get(dataset.name, (None, ""))
    if parts is None or not all(importlib.util.find_spec(name) for name in ("torch_em", needs)):
        return False
    waiting = folder.with_name(f".{folder.name}.fetching")
    try:
        for target, get in parts(waiting):
            if not target.is_dir():
                _whole_folder(target, get)
        os.replace(waiting, folder / "torch_em")
    except (Exception, SystemExit) as error:  # whatever torch-em, gdown or kaggle raise
        raise InputError(
            f"{dataset.name} could not be fetched by torch-em ({reason(error)[:200]}); {by_hand(dataset, folder)}"
        ) from error
    return True


def by_hand(dataset: Dataset, folder: Path) -> str:
    """The one sentence on how to get a set without us."""
    steps = dataset.manual.format(folder=folder) or f"download it from {dataset.address} into {folder}"
    return f"{steps}; then run the same command again."


def fetch(dataset: Dataset, folder: Path) -> None:
    """Brings a dataset's original files into a folder, unpacked; what a person put there is used, too.

    Raises:
        InputError: a download or an archive fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}); name another folder with --out.") from error
    for remote in dataset.files:
        target = folder / remote.name
        if target.suffix != ".zip" or not target.with_suffix("").is_dir():  # an unpacked archive may be deleted
            download(remote, folder)
    unpack(folder)
