"""Folders by name: a folder on this machine, or a repository of the Hugging Face hub that is fetched into its cache.

And transformers' own models from such folders, as strict as all other loaders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from ullsam.errors import InputError, reason
from ullsam.files import check_names, check_shapes

WHOLE = "download the whole repository of the model again"
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


def load_model(kind, folder: str | Path, partial: bool = False, remedy: str = WHOLE, **options) -> nn.Module:
    """A model of transformers whose weights all come from safetensors; by itself transformers leaves some at random.

    Args:
        kind: a class with `from_pretrained`, such as AutoModelForCausalLM.
        folder: a folder or hub name.
        partial: the model is a part of what the files hold, so names that are left over are fine.
        remedy: what to do where transformers cannot load it; options: go to `from_pretrained`.

    Raises:
        InputError: names that are missing or left over, or shapes that do not fit, or what transformers says.
    """
    strict = dict(output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True)  # it tells, we decide
    try:
        with quiet_transformers():
            model, info = kind.from_pretrained(folder, **strict, **options)
    except Exception as error:  # transformers, safetensors and pickle raise many kinds
        raise InputError(f"The weights in {folder} could not be loaded ({reason(error)}); {remedy}.") from error
    check_names(info["missing_keys"], () if partial else info["unexpected_keys"], folder)
    check_shapes(((name, *map(tuple, shapes)) for name, *shapes in info["mismatched_keys"]), folder)
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and tables of weights, which would stand between a notebook's outputs."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
