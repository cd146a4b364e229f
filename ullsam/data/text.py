"""The one reader of text files: which encodings, which ends of lines, and what is said of anything else."""

import codecs
from pathlib import Path

from ullsam.errors import InputError


def read_text(path: str | Path, stopped: bool = False) -> str:
    """The text of a file in UTF-8, or in UTF-16 that says so by its byte order mark, with lines that end in a line feed.

    Args:
        stopped: leaves out a last character that is not complete, whose writer was stopped within it.

    Raises:
        InputError: the file cannot be opened, or is in another encoding.
    """
    try:
        data = Path(path).read_bytes()
        marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = codecs.getincrementaldecoder("utf-16" if marked else "utf-8-sig")().decode(data, final=not stopped)
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}); check the path and its permissions.") from error
    except UnicodeError as error:
        raise InputError(f"{path} is not text in UTF-8 ({error}); save it as UTF-8.") from error
    if "\0" in text:
        raise InputError(f"{path} is not text in UTF-8 (it has zero bytes); save it as UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n")
