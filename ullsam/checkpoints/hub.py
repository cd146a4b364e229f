"""Folders by name: a folder on this machine, or a repository of the Hugging Face hub that is fetched into its cache."""

from __future__ import annotations

import re
from pathlib import Path

from ullsam.errors import InputError, reason

CONFIGS = ("*.json", "tokenizer.model")
WEIGHTS = (*CONFIGS, "*.safetensors")


def local_folder(name: str | Path, files: tuple[str, ...] = WEIGHTS) -> Path:
    """The folder `name`, or the cached copy of the hub's repository `name` ("owner/model").

    Args:
        files: patterns of the files that are fetched; never code or pickles.

    Raises:
        InputError: no such folder, and the hub has no such repository or cannot be reached.
    """
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) or Path(name).suffix in (".pt", ".pth", ".safetensors"):
        raise InputError(f"There is no file or folder {name}; check the path, or give a hub name such as owner/model.")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(str(name), allow_patterns=list(files)))
    except (OSError, ValueError, RuntimeError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise InputError(f"{name} is no folder here and could not be fetched from the Hugging Face hub ({reason(error)}); "
                         "download it elsewhere and give its folder.") from error  # fmt: skip
