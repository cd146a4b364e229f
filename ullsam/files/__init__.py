"""Weight files: read without running code in them and without a second copy in memory, checked by name, written whole."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ullsam.data.text import read_text
from ullsam.errors import InputError, reason

ALONE = "save the weights alone (torch.save(model.state_dict(), ...)) and load that file"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIGS = ("*.json", "tokenizer.model")
WEIGHTS = (*CONFIGS, "*.safetensors")


def read_torch(path: str | Path, remedy: str = "get it again", mapped: bool = True) -> dict:
    """The dictionary in a PyTorch file.

    Nothing in the file is executed (`weights_only`); of Python's own objects only an argparse namespace is let through,
    which training scripts like to store.

    Args:
        path: the file; remedy: what to do where it is damaged.
        mapped: leaves the tensors on the disk until they are used, where the file's format allows that.

    Raises:
        InputError: there is no such file, or it is cut off, no PyTorch file, or holds objects that could run code.
    """
    path = _existing(path, remedy)
    with path.open("rb") as file:
        newer = file.read(2) in (b"\x80\x04", b"\x80\x05")  # protocols that torch does not write
    if newer:
        raise InputError(f"{path} is a pickle, which could run code, so it is not opened; {ALONE}.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise InputError(_refused(path, str(error), remedy)) from error
    except Exception as error:  # torch raises many kinds here: zip, end of file, runtime
        raise InputError(f"{path} is not a readable PyTorch checkpoint ({type(error).__name__}); {remedy}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dictionary of weights; {remedy}.")
    return content


def _existing(path: str | Path, remedy: str = "get it again") -> Path:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file {path}; check the path or download it first.")
    with path.open("rb") as file:
        start = file.read(24)
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is only a pointer to the real file; run `git lfs pull` in its folder.")
    if start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        raise InputError(f"{path} ends too early, it was cut off; {remedy}.")
    return path


def _refused(path: Path, reason: str, remedy: str) -> str:
    found = re.search(r"(?:GLOBAL|global)\s+`?([\w.]+)", reason)
    if not found:
        return f"{path} is not a readable PyTorch checkpoint (UnpicklingError); {remedy}."
    name, remedy = found.group(1), ALONE
    if name.startswith(("torch_em", "micro_sam")):
        remedy = "export it with micro_sam.util.export_custom_sam_model and load that file"
    return f"{path} holds Python objects ({name}) that could run code, so it is not opened; {remedy}."


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or of a folder with one file or with shards and their index.

    Raises:
        InputError: a file or shard is missing, cut off or damaged, or a shard lacks what the index says.
    """
    path = Path(path)
    if path.is_file() or path.suffix == ".safetensors":
        return _read_shard(path)
    if (path / INDEX).is_file():
        return _read_shards(path)
    if (path / SINGLE).is_file():
        return _read_shard(path / SINGLE)
    raise InputError(f"{SINGLE} is missing in {path}, and so is {INDEX}; download one of them there or save it again.")


def _read_shard(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(_existing(path))
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or cut off ({error}); get it again.") from error


def _read_shards(folder: Path) -> dict[str, Tensor]:
    files = read_json(folder / INDEX).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(x, str) and Path(x).name == x for x in files.values()):
        raise InputError(f"{folder / INDEX} does not say which file holds which weight; get it again.")
    shards = sorted(set(files.values()))
    absent = [name for name in shards if not (folder / name).is_file()]
    if absent:
        raise InputError(f"{folder} lacks {_few(absent)} of {len(shards)} shards; download what is missing.")
    state = {}
    for name in shards:
        state |= _read_shard(folder / name)
    check_names(files, state, folder)
    return state


def read_json(path: Path, remedy: str = "get it again") -> dict:
    """The dictionary in a JSON file; a missing or damaged file is one sentence."""
    if not Path(path).exists():
        raise InputError(f"{path} is missing; download it beside the weights.")
    text = read_text(path)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); {remedy}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds a {type(values).__name__}, not a dictionary; {remedy}.")
    return values


def check_names(expected: Iterable[str], found: Iterable[str], source, ignore: tuple[str, ...] = ()) -> None:
    """Raises InputError with the first names that `source` lacks or has too many; `ignore`: prefixes that may be absent."""
    expected, found = set(expected), set(found)
    missing = sorted(k for k in expected - found if not k.startswith(ignore))
    for what, names in (("is missing", missing), ("has unexpected", sorted(found - expected))):
        if names:
            raise InputError(f"{source} {what} {_few(names)}; it was made for another model or variant.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def cast(pairs: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None, device) -> dict[str, Tensor]:
    """The tensors on `device`, floats as `dtype` (None: as stored); taken one by one, so that no second copy piles up."""
    return {k: x.to(device=device, dtype=dtype if x.is_floating_point() else None) for k, x in pairs}


def check(module: nn.Module, state: dict[str, Tensor], source, ignore: tuple[str, ...] = ()) -> None:
    """Raises InputError with the first names or shapes of `state` that do not fit `module`."""
    own = module.state_dict()
    check_names(own, state, source, ignore)
    check_shapes(((k, tuple(x.shape), tuple(own[k].shape)) for k, x in state.items() if x.shape != own[k].shape), source)


def check_shapes(misfits: Iterable[tuple[str, tuple, tuple]], source) -> None:
    """Raises InputError with the first of the misfits (name, shape in `source`, shape that is needed) if there are any."""
    wrong = [f"{name} {found} instead of {needed}" for name, found, needed in misfits]
    if wrong:
        raise InputError(f"{source} has shapes that do not fit: {_few(wrong)}; it was made for another model or variant.")


def assign(module: nn.Module, state: dict[str, Tensor], source, ignore: tuple[str, ...] = ()) -> None:
    """Makes the tensors of `state` the weights of `module`, which may be on the meta device; copies nothing.

    Args:
        source: what an error message calls the origin of the weights.
        ignore: prefixes of names that `state` may lack.

    Raises:
        InputError: names that are missing or left over, or shapes that do not fit.
    """
    check(module, state, source, ignore)
    module.load_state_dict(state, strict=False, assign=True)


def copy_into(module: nn.Module, state: dict[str, Tensor], source, ignore: tuple[str, ...] = ()) -> None:
    """Copies the tensors of `state` into the weights that `module` has already; arguments and errors as in `assign`."""
    check(module, state, source, ignore)
    module.load_state_dict(state, strict=False)


def write_safetensors(folder: str | Path, state: dict[str, Tensor], shard_bytes: int = 5 * 10**9) -> None:
    """Writes weights as one file, or as shards with an index if they are larger than `shard_bytes`.

    All files are written before the first takes its name, and the index comes last: what was there stays when the disk
    is full, and a reader never sees an index without its shards.
    """
    folder, split = Path(folder), split_torch_state_dict_into_shards(state, max_shard_size=shard_bytes)
    with ExitStack() as files:  # the last one entered takes its name first
        if split.is_sharded:
            index = files.enter_context(whole(folder / INDEX))
            index.write_text(json.dumps({"metadata": {}, "weight_map": split.tensor_to_filename}, indent=1))
        for name, keys in split.filename_to_tensors.items():
            part = files.enter_context(whole(folder / name))
            save_file({k: state[k].detach().cpu().contiguous() for k in keys}, part, metadata={"format": "pt"})
        (folder / INDEX).unlink(missing_ok=True)
    if split.is_sharded:
        (folder / SINGLE).unlink(missing_ok=True)


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A place to write a file to, in a folder that is made; it takes its name when all is written, and vanishes when
    something fails. A link stays and its target is written; a device or a pipe, such as /dev/null, is written in place.

    Raises:
        InputError: the file cannot be written, for example because the disk is full.
    """
    path = Path(os.path.realpath(path) if os.path.islink(path) else path)
    special = os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))
    part = path if special else path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if not special:
            part.chmod(0o644)  # safetensors makes files that only their owner can read
            os.replace(part, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path} could not be written ({error}); is the disk full or write-protected?") from error
    finally:
        if not special and os.path.lexists(part):
            part.unlink()


@contextmanager
def whole_folder(path: str | Path, work: str | Path | None = None) -> Iterator[Path]:
    """A place to make a folder at; it takes its name when all is there, and vanishes when something fails.

    Args:
        path: the folder, which must not exist; the one that it lies in is made.
        work: where it is filled, on the same disk (default: beside `path`).
    """
    path = Path(path)
    part = Path(work or path.parent) / f".{path.name}.partial"
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        yield part
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_json(path: str | Path, values: dict) -> None:
    """Writes strict JSON (no NaN) in one step: a reader sees the old file or the whole new one; folders are made.

    Raises:
        InputError: the path cannot be written.
    """
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def local_folder(name: str | Path, files: tuple[str, ...] = WEIGHTS) -> Path:
    """The folder `name`, or the cached copy of the hub's repository `name` ("owner/model").

    Args:
        files: patterns of the files that are fetched; never code or pickles.

    Raises:
        InputError: no such folder, and the hub has no such repository or cannot be reached.
    """
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise InputError(f"{name} is a file where a folder is needed; give the model's folder, with its config.json.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) or Path(name).suffix in (".pt", ".pth", ".safetensors"):
        raise InputError(f"There is no file or folder {name}; check the path, or give a hub name such as owner/model.")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(str(name), allow_patterns=list(files)))
    except (OSError, ValueError, RuntimeError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise InputError(
            f"{name} is no folder here and could not be fetched from the Hugging Face hub ({reason(error)}); "
            "download it elsewhere and give its folder."
        ) from error
