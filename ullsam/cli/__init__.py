"""Command line: python -m ullsam COMMAND, for what runs longer than a notebook."""

from __future__ import annotations

import argparse
import errno
import shlex
import sys
from pathlib import Path

from ullsam.errors import InputError


def ship(args: argparse.Namespace) -> None:
    """Makes a recipe's result the weights that come with the package."""
    from ullsam.tiny.recipes import ship

    print(f"The weights are in {ship(args.recipe, args.out)}")


def readme(args: argparse.Namespace) -> None:
    """Writes the tables of measured results into the README and the model card."""
    from ullsam.lab.card import card
    from ullsam.lab.report import tables, update

    for file, write in ((args.file, tables), (args.card, card)):
        print(f"Updated {update(file, write(args.results))}")


def evaluate(args: argparse.Namespace) -> None:
    """Scores the masks of a model on every folder of images."""
    from ullsam.evaluation.protocol import evaluate, summarise
    from ullsam.lab.baselines import open_predictor

    corpora, predictor = _open(args, open_predictor)
    points, vlk = "box" if args.box else tuple(args.points), not args.no_vlk
    options = (args.split, points, vlk, args.seed, args.limit)
    _finish(args, [evaluate(predictor, corpus, *options, progress=True) for corpus in corpora], summarise)


def evaluate_words(args: argparse.Namespace) -> None:
    """Scores a model's descriptions on every folder of images; shuffled: of the next folder's images; text-only: of none."""
    from functools import partial

    from ullsam.evaluation.caption_metrics import evaluate_words, summarise_words
    from ullsam.model import load

    corpora, model = _open(args, load)
    if args.shuffled and len(corpora) < 2:
        raise InputError("--shuffled describes images of another dataset; name at least two folders after --data.")
    shown = corpora[1:] + corpora[:1] if args.shuffled else [None] * len(corpora)
    options = {"split": args.split, "seed": args.seed, "limit": args.limit, "use_image": not args.text_only}
    words = partial(evaluate_words, model, progress=True, **options)
    _finish(args, [words(a, shown=b) for a, b in zip(corpora, shown, strict=True)], summarise_words)


def knowledge(args: argparse.Namespace) -> None:
    """Measures what vision-language knowledge says about the images and what the masks make of it."""
    from ullsam.accel.distributed import distributed_state
    from ullsam.lab.knowledge import measure_knowledge, summarise_knowledge
    from ullsam.model import load
    from ullsam.plots.charts import show_knowledge

    if args.figure and Path(args.figure).suffix.lower() != ".png":
        raise InputError(f"--figure {args.figure} does not end in .png; the figure is written in this format.")
    corpora, model = _open(args, load)
    for corpus in corpora:
        corpus.select(args.fit_split)
    fit = {"fit_split": args.fit_split, "fit_limit": args.fit_limit}
    result = measure_knowledge(model, corpora, args.split, args.seed, args.limit, **fit, progress=True)
    _finish(args, [result], summarise_knowledge)
    if not distributed_state().is_main_process:
        return
    print("\n".join(result["reading"].values()))
    if args.figure:
        show_knowledge(result).save(args.figure)


def worst(args: argparse.Namespace) -> None:
    """Draws the worst case of every folder."""
    import json

    from ullsam.lab.worst import worst_cases
    from ullsam.model import load
    from ullsam.predictor import Predictor

    if not Path(args.results).is_file():
        raise InputError(f"There is no {args.results}; write it with `python -m ullsam evaluate ... --out {args.results}`.")
    corpora, model = _open(args, load)
    worst_cases(Predictor(model), corpora, json.loads(Path(args.results).read_text())).save(args.out)
    print(f"The picture is in {args.out}")


def describe(args: argparse.Namespace) -> None:
    """Prints one line of words per image."""
    from ullsam.data.io import read_image
    from ullsam.model import load

    model = load(args.model)
    for path in args.image:
        print(f"{path}: {' '.join(model.describe(read_image(path), args.question).split())}", flush=True)


def demo_images(args: argparse.Namespace) -> None:
    """Segments and describes three images; prints how it went and where the results are."""
    from functools import partial

    from ullsam.cli.demo import run_demo

    run_demo(args.out, args.model, partial(print, flush=True))


def app(args: argparse.Namespace) -> None:
    """Serves the app to a browser until it is interrupted."""
    from ullsam.widgets.server import serve

    serve(args.notebook, args.host, args.port, args.sessions, args.browser)


def _open(args: argparse.Namespace, load) -> tuple[list, object]:
    """The corpora, all of them checked before anything runs, and the model."""
    from ullsam.accel.distributed import device
    from ullsam.data.corpus import Corpus

    corpora = [Corpus(folder) for folder in args.data]
    for corpus in corpora:
        corpus.select(args.split)
    if Path(args.out).is_dir():
        raise InputError(f"--out {args.out} is a folder; name a file, for example {Path(args.out) / 'results.json'}.")
    return corpora, load(args.model, device=device())


def _finish(args: argparse.Namespace, results: list[dict], summarise) -> None:
    """Writes the results file, with the last parts of a path in place of the whole, and prints the table."""
    from ullsam.accel.distributed import distributed_state
    from ullsam.evaluation.protocol import format_table, report
    from ullsam.files import write_json

    if not distributed_state().is_main_process:
        return
    results = [result | {"model": Path(args.model).resolve().name} for result in results]
    short = {word: "/".join(Path(word).resolve().parts[-2:]) for word in args.data}
    words = [short.get(word, Path(word).name if Path(word).is_absolute() else word) for word in args.words]
    write_json(args.out, report(results, shlex.join(["python", "-m", "ullsam", *words])))
    print(f"{format_table(summarise(results))}\nwritten to {args.out}")


def _add_common(add: argparse.ArgumentParser, run) -> None:
    """Options that both evaluations have."""
    add.add_argument("--data", nargs="+", required=True, metavar="FOLDER", help="folders with images/ and masks/")
    add.add_argument("--split", help="only this split of images.csv, for example test (default: all images)")
    add.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    add.add_argument("--limit", type=int, help="at most so many images per folder, evenly spaced (default: all)")
    add.add_argument("--out", required=True, metavar="FILE", help="JSON file for the results")
    add.set_defaults(run=run)


def _add_evaluation(commands) -> None:
    """The commands evaluate, evaluate-words and describe."""
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--model", default="tiny", help="tiny, usam-tiny, or a folder of a saved model (default: tiny)")
    add = commands.add_parser("evaluate", help="score the masks of a model, ours or another")
    add.add_argument(
        "--model",
        default="tiny",
        help="tiny, usam-tiny, a folder, a SAM, uSAM or MedSAM file, or a hub name "
        "of SAM, SAM-HQ or SAM 2 such as facebook/sam2-hiera-tiny (default: tiny)",
    )
    add.add_argument("--no-vlk", action="store_true", help="without vision-language knowledge")
    prompt = add.add_mutually_exclusive_group()
    prompt.add_argument(
        "--points",
        nargs=2,
        type=int,
        default=(1, 3),
        metavar=("P", "N"),
        help="positive and negative points per object (default: 1 3)",
    )
    prompt.add_argument("--box", action="store_true", help="prompt with bounding boxes instead of points")
    _add_common(add, evaluate)
    add = commands.add_parser("evaluate-words", parents=[model], help="score the descriptions of a model")
    instead = add.add_mutually_exclusive_group()
    instead.add_argument("--shuffled", action="store_true", help="describe images of the next folder instead")
    instead.add_argument("--text-only", action="store_true", help="describe without any image")
    _add_common(add, evaluate_words)
    add = commands.add_parser("knowledge", parents=[model], help="measure whether vision-language knowledge changes masks")
    add.add_argument("--fit-split", default="train", help="split that the probes learn from (default: train)")
    add.add_argument("--fit-limit", type=int, default=12, help="at most so many of its images per folder (default: 12)")
    add.add_argument("--figure", metavar="FILE", help="PNG file for a figure of the results")
    _add_common(add, knowledge)
    add = commands.add_parser("worst", parents=[model], help="draw the worst case of every folder")
    add.add_argument("--data", nargs="+", required=True, metavar="FOLDER", help="folders with images/ and masks/")
    add.add_argument("--results", required=True, metavar="FILE", help="what `evaluate` wrote about the model on them")
    add.add_argument("--out", required=True, metavar="FILE", help="PNG file to write")
    add.set_defaults(run=worst, split=None)
    add = commands.add_parser("describe", parents=[model], help="describe images in words")
    add.add_argument("image", nargs="+", help="image files")
    add.add_argument("--question", help="asked after the image (default: a description)")
    add.set_defaults(run=describe)


def _add_app(commands) -> None:
    add = commands.add_parser("app", help="segment images in a browser, see also `make app`")
    add.add_argument("--notebook", default="notebooks/app.ipynb", help="the page (default: notebooks/app.ipynb)")
    add.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: 127.0.0.1)")
    add.add_argument("--port", type=int, default=8866, help="default: 8866")
    add.add_argument("--sessions", type=int, default=8, help="pages at once, about 0.9 GB each (default: 8)")
    add.add_argument("--browser", action="store_true", help="open the page in a browser")
    add.set_defaults(run=app)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    from ullsam.cli.checkpoints import add_commands as add_checkpoint_commands
    from ullsam.cli.datasets import add_commands as add_dataset_commands
    from ullsam.cli.microvqa import add_commands as add_question_commands
    from ullsam.cli.reproduce import add_command as add_reproduce_command
    from ullsam.cli.train import add_command as add_train_command
    from ullsam.lab.log import add_command as add_log_command

    parser = argparse.ArgumentParser(prog="python -m ullsam", description="uLLSAM: segment and describe microscopy images.")
    commands = parser.add_subparsers(dest="command", required=True)
    add_train_command(commands)
    add_log_command(commands)
    add = commands.add_parser("ship", help="copy a finished recipe's model to data/weights, its log to data/results")
    add.add_argument("recipe", help="ullsam-tiny or usam-tiny")
    add.add_argument("--out", default="runs", help="folder of the recipes (default: runs)")
    add.set_defaults(run=ship)
    add = commands.add_parser("readme", help="write the measured results into the README and the model card")
    add.add_argument("--file", default="README.md")
    add.add_argument("--card", default="data/weights/README.md", help="the model card (default: data/weights/README.md)")
    add.add_argument("--results", default="data/results", help="folder of the JSON files (default: data/results)")
    add.set_defaults(run=readme)
    _add_evaluation(commands)
    add_reproduce_command(commands)
    _add_app(commands)
    add_checkpoint_commands(commands)
    add_dataset_commands(commands)
    add_question_commands(commands)
    add = commands.add_parser("demo", help="segment and describe three images, in a minute")
    add.add_argument("--out", default="demo_output", help="folder for the results (default: demo_output)")
    add.add_argument("--model", default="tiny", help="tiny, usam-tiny, or a folder of a saved model (default: tiny)")
    add.set_defaults(run=demo_images)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit code; a problem with the input is one sentence on standard error and code 2.

    What the file system refuses (a full disk, a file where a folder should be) is such a problem, too.
    """
    words = sys.argv[1:] if arguments is None else arguments
    args = build_parser().parse_args(words, argparse.Namespace(words=words))
    try:
        return args.run(args) or 0
    except InputError as error:
        problem = str(error)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):  # of no file, such as a port in use
            raise
        place = "A file could not be written" if error.filename is None else f"{error.filename} cannot be used"
        problem = f"{place} ({error.strerror}); check the path and the free space, and run the same command again."
    print(f"ullsam: {problem}", file=sys.stderr)
    return 2
