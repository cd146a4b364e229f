"""The answers of a question run, kept one line each while they come in, so that a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from glob import escape
from pathlib import Path

from ullsam.accel.distributed import distributed_state
from ullsam.data.io import write_atomic
from ullsam.data.questions import Question
from ullsam.errors import InputError


class AnswerFile:
    """A jsonl file: a line with the run's settings, then a line per answer; every process writes a part of its own.

    Args:
        path: the file; its parts, which are merged into it at the end, have the process's number before the suffix.
        settings: what must be equal for the answers of an earlier run to count.
    """

    def __init__(self, path: str | Path, settings: dict):
        self.path, self.settings = Path(path), settings
        self.part = self.path.with_suffix(f".{distributed_state().process_index}.part")

    def read(self, questions: Sequence[Question]) -> dict[int, dict]:
        """Answers that are there already, by the place of their question; all processes read before one goes on.

        Raises:
            InputError: the file belongs to a run with other settings or questions, or cannot be written.
        """
        rows = {}
        for path in (self.path, *self._parts()):
            rows |= self._read_one(path, questions)
        distributed_state().wait_for_everyone()
        self._start()
        return rows

    def add(self, index: int, row: dict) -> None:
        """Appends one answer at once."""
        try:
            with self.part.open("a", encoding="utf-8") as file:
                file.write(_line({"index": index, **row}))
        except OSError as error:
            raise InputError(
                f"{self.part} cannot be written ({error.strerror}); make space and run the command again, "
                "it goes on from here."
            ) from error

    def finish(self, rows: dict[int, dict]) -> None:
        """Puts all answers into the one file, in the order of the questions, and removes the parts."""
        distributed_state().wait_for_everyone()
        if distributed_state().is_main_process:
            lines = [{"settings": self.settings}, *({"index": i, **rows[i]} for i in sorted(rows))]
            write_atomic(self.path, "".join(map(_line, lines)).encode())
            for part in self._parts():
                part.unlink()

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{escape(self.path.stem)}.[0-9]*.part"))

    def _start(self) -> None:
        """A part that begins with the settings and keeps what it held, without a line that was cut off."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = _whole_lines(self.part) if self.part.is_file() else []
            write_atomic(self.part, "".join(map(_line, kept or [{"settings": self.settings}])).encode())
        except OSError as error:
            raise InputError(f"{self.part} cannot be written ({error.strerror}); name another file.") from error

    def _read_one(self, path: Path, questions: Sequence[Question]) -> dict[int, dict]:
        if not path.is_file():
            return {}
        head, *rows = _whole_lines(path) or [{"settings": self.settings}]
        if head.get("settings") != self.settings:
            raise InputError(f"{path} holds the answers of a run with other settings; name another file or delete it.")
        for row in rows:
            index = row.get("index", -1)
            if not 0 <= index < len(questions) or questions[index].key_question != row["key_question"]:
                raise InputError(f"{path} holds answers to other questions; name another file or delete it.")
        return {row["index"]: {k: v for k, v in row.items() if k != "index"} for row in rows}


def _line(values: dict) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def _whole_lines(path: Path) -> list[dict]:
    """The JSON objects of a file; a last line that was cut off is left out.

    Raises:
        InputError: another line is no JSON object.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    try:
        values = [json.loads(line) for line in whole]
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); delete it and start again.") from error
    if not all(isinstance(value, dict) for value in values):
        raise InputError(f"{path} does not hold answers; name another file.")
    return values
