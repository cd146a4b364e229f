"""Command line: python -m ullsam COMMAND, for what runs longer than a notebook."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps

from tyro.conf import DisallowNone, FlagCreatePairsOff, OmitArgPrefixes, PositionalMetavarFromFieldName
from tyro.extras import subcommand_cli_from_dict

from ullsam.cli import demo, lab, measure, prepare, train
from ullsam.cli.options import WORDS, check_numbers
from ullsam.errors import InputError

NOTEBOOK, LOCAL = "notebooks/app.ipynb", "127.0.0.1"


def app(notebook: str = NOTEBOOK, host: str = LOCAL, port: int = 8866, sessions: int = 8, browser: bool = False) -> None:
    """Segment images in a browser, see also `make app`.

    Args:
        notebook: the page
        host: 0.0.0.0 lets other machines in
        port: of the server
        sessions: pages at once, about 0.9 GB each
        browser: open the page in a browser
    """
    from ullsam.widgets.app import serve

    serve(notebook, host, port, sessions, browser)


# Each command is a function whose arguments are the options and whose docstring is the help. They import what is heavy
# when they run, so that help and wrong options are there at once.
COMMANDS: dict[str, Callable] = {
    "demo": demo.demo,
    "app": app,
    "describe": measure.describe,
    "evaluate": measure.evaluate,
    "evaluate-words": measure.evaluate_words,
    "knowledge": measure.knowledge,
    "microvqa": measure.microvqa,
    "worst": measure.worst,
    "train": train.train,
    "log-run": train.log_run,
    "ship": train.ship,
    "reproduce": measure.reproduce,
    "lab": lab.lab,
    "prepare-data": prepare.prepare_data,
    "prepare-pairs": prepare.prepare_pairs,
    "caption": prepare.caption,
    "make-questions": prepare.make_questions,
    "convert": prepare.convert,
    "parity": prepare.parity,
}


def parse(words: Sequence[str]) -> partial:
    """The function of a command line with its arguments, not called yet; exits for what is none, and after --help."""

    def later(function: Callable) -> Callable:
        @wraps(function)
        def call(*args, **options) -> partial:
            return partial(function, *args, **options)

        return call

    return subcommand_cli_from_dict(
        {name: later(function) for name, function in COMMANDS.items()},
        prog="python -m ullsam",
        description="uLLSAM: segment and describe microscopy images.",
        args=words,
        config=(DisallowNone, FlagCreatePairsOff, OmitArgPrefixes, PositionalMetavarFromFieldName),
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit code; a problem with the input is one sentence on standard error and code 2.

    What the file system refuses (a full disk, a file where a folder should be) is such a problem, too.
    """
    words = sys.argv[1:] if arguments is None else arguments
    command = parse(words)
    WORDS.set(words)
    for stream in (sys.stdout, sys.stderr):  # names of files may have bytes that are no text
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        check_numbers(**command.keywords)
        return command() or 0
    except InputError as error:
        problem = str(error)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):  # of no file, such as a port in use
            raise
        what = "A file could not be written" if error.filename is None else f"{error.filename} cannot be used"
        problem = f"{what} ({error.strerror}); check the path and the free space, and run the same command again."
    print(f"ullsam: {problem}", file=sys.stderr)
    return 2
