"""Which encodings and ends of lines are read, and what is said of anything else."""

import pytest

from ullsam.data.text import read_text
from ullsam.errors import InputError

TEXT = "5 \u00b5m\nnuclei\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_of_other_programs(tmp_path, encoding, end):
    mark = "\ufeff" if encoding[-2:] in ("le", "be") else ""
    (tmp_path / "a.txt").write_bytes((mark + TEXT.replace("\n", end)).encode(encoding))
    assert read_text(tmp_path / "a.txt") == TEXT


@pytest.mark.parametrize(
    "content", [TEXT.encode("latin-1"), TEXT.encode("cp1252"), "nuclei".encode("utf-16-le"), b"a\0", b"\xc2"]
)
def test_other_bytes_are_one_sentence(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match="a.txt is not text in UTF-8 .*; save it as UTF-8."):
        read_text(tmp_path / "a.txt")


def test_a_character_whose_writer_was_stopped(tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXT.encode()[:3])
    assert read_text(tmp_path / "a.txt", stopped=True) == "5 "


def test_what_cannot_be_opened(tmp_path):
    for path in (tmp_path, tmp_path / "none.txt", tmp_path / ("a" * 300)):
        with pytest.raises(InputError, match="cannot be opened .*; check the path and its permissions"):
            read_text(path)
