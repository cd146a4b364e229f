"""The command `python -m ullsam reproduce`: measures, draws, and says what agrees with the paper."""

from __future__ import annotations

import argparse
from pathlib import Path

from ullsam.errors import InputError


def add_command(commands) -> None:
    """Adds the command reproduce to the parser of python -m ullsam."""
    add = commands.add_parser("reproduce", help="the paper's tables and figures at tiny scale")
    add.add_argument("tables", nargs="*", help="table1 .. table6, fig3 .. fig7 (default: all, the most telling first)")
    add.add_argument(
        "--budget",
        default="class",
        help="class: half an hour on two cores, one seed; evening: three hours, three seeds; full: a night (default: class)",
    )
    add.add_argument("--seeds", type=int, metavar="N", help="train each arm N times (default: as the budget says)")
    add.add_argument("--out", help="folder of the trained arms (default: runs/reproduce_BUDGET)")
    add.add_argument("--results", help="JSON file (default: data/results/reproduce_BUDGET.json)")
    add.add_argument("--figures", help="folder for tables.md and the PNG files (default: data/results/reproduce_BUDGET)")
    add.add_argument("--questions", help="folder of the results of microvqa, for table6 (default: data/results)")
    add.add_argument(
        "--sam",
        metavar="FOLDER",
        help="saved model whose SAM all arms start from, for example runs/encoder "
        "of `train encoder`, which has not learnt from clicks yet (default: usam-tiny)",
    )
    images = add.add_mutually_exclusive_group()
    images.add_argument("--data", help="folder with corpora (default: ULLSAM_DATA)")
    images.add_argument("--synthetic", action="store_true", help="synthetic images instead of corpora")
    add.set_defaults(run=reproduce)


def reproduce(args: argparse.Namespace) -> None:
    """Re-does the paper's tables and figures; what is measured already is not measured again.

    Raises:
        InputError: an unknown table or budget, no seed, other conditions than before, or table6 by name without its results.
    """
    from ullsam.data.corpus import data_root
    from ullsam.lab.reproduce import Reproduction, budget_of
    from ullsam.lab.reproduce_tables import TABLES

    names = args.tables or list(TABLES)
    answers, problem = _answers(args, names)
    results = args.results or f"data/results/reproduce_{args.budget}.json"
    figures = Path(args.figures or f"data/results/reproduce_{args.budget}")
    out, data = args.out or f"runs/reproduce_{args.budget}", None if args.synthetic else data_root(args.data)
    words = ["python -m ullsam reproduce", *args.tables, f"--budget {args.budget}", *["--synthetic"] * args.synthetic]
    words += [f"--seeds {args.seeds}"] if args.seeds else []
    words += ["--sam", Path(args.sam).name] if args.sam else []
    job = Reproduction(budget_of(args.budget, args.seeds), out, results, data, _start(args.sam), " ".join(words))
    job.run(names)
    text = "\n\n".join(part for part in write(job, names, figures, answers) + [problem] if part)
    print(f"{text}\n\nwritten to {results} and {figures}")


def _start(sam: str | None):
    """What all arms start from, with another SAM if one is named."""
    from ullsam.evaluation.compare import shared_start
    from ullsam.model import load_parts

    start = shared_start()
    if sam:
        load_parts(start, sam)
    return start


def write(job, names: list[str], folder: Path, answers: list | None = None) -> list[str]:
    """Writes tables.md and one PNG per table and figure (two for grids: median and worst case).

    Args:
        job: a Reproduction whose rows are measured; names: of TABLES; folder: made if absent.
        answers: of `reproduce_questions.read_answers`, for table6.

    Returns:
        The tables as Markdown.
    """
    from ullsam.data.io import write_atomic
    from ullsam.lab import reproduce_questions
    from ullsam.lab.reproduce_report import markdown

    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        _draw(job, name, folder, answers)
    texts = [markdown(job.results, names)] + ([reproduce_questions.markdown(answers)] if answers else [])
    write_atomic(folder / "tables.md", ("\n\n".join(text for text in texts if text) + "\n").encode())
    return texts


def _draw(job, name: str, folder: Path, answers: list | None) -> None:
    from ullsam.lab.reproduce_figures import chart, questions_chart, write_png
    from ullsam.lab.reproduce_grids import RULES, grid
    from ullsam.lab.reproduce_tables import GRIDS

    if name in GRIDS:
        for rule in RULES:
            write_png(grid(job, name, rule), folder / f"{name}_{rule}.png")
        return
    figure = (questions_chart(answers) if answers else None) if name == "table6" else chart(name, job.results)
    if figure is not None:
        write_png(figure, folder / f"{name}.png")


def _answers(args: argparse.Namespace, names: list[str]) -> tuple[list | None, str]:
    """What table6 shows, and where it was not asked for by name the sentence that says what is missing."""
    from ullsam.lab.reproduce_questions import read_answers
    from ullsam.model import shipped

    if "table6" not in names:
        return None, ""
    try:
        return read_answers(args.questions or shipped("results")), ""
    except InputError as error:
        if args.tables:
            raise
        return None, str(error)
