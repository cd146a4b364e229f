"""The commands `microvqa` and `make-questions` of python -m ullsam."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ullsam.errors import InputError

LENGTHS = {"likelihood": 0, "generate": 64, "official": 1024}  # tokens that a method may write


def add_commands(commands) -> None:
    """Adds both commands to the parser of python -m ullsam."""
    add = commands.add_parser("microvqa", help="ask a model multiple-choice questions about images")
    add.add_argument(
        "--model",
        default="tiny",
        help="tiny, a folder of a saved model, random, or a folder or hub name of a "
        "vision-language model of Hugging Face (default: tiny)",
    )
    add.add_argument(
        "--data", default="synthetic", help="synthetic, a folder with parquet files, or jmhb/microvqa (default: synthetic)"
    )
    add.add_argument("--count", type=int, default=300, help="number of synthetic questions (default: 300)")
    add.add_argument("--split", help="of the data, where there are several")
    add.add_argument(
        "--method",
        nargs="+",
        default=["likelihood"],
        metavar="METHOD",
        help="likelihood, generate, official (default: likelihood)",
    )
    add.add_argument(
        "--image", nargs="+", default=["own", "none"], metavar="IMAGE", help="own, none, shuffled (default: own none)"
    )
    add.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    add.add_argument("--limit", type=int, help="at most so many questions, evenly spaced (default: all)")
    add.add_argument("--max-new-tokens", type=int, help="of a written answer (default: 64, official: 1024)")
    add.add_argument("--out", required=True, metavar="FILE", help="JSON file for the results; answers go beside it")
    add.set_defaults(run=microvqa)
    add = commands.add_parser("make-questions", help="write questions about synthetic images in MicroVQA's layout")
    add.add_argument("out", metavar="FOLDER")
    add.add_argument("--count", type=int, default=300, help="number of questions (default: 300)")
    add.add_argument("--seed", type=int, default=0, help="of the images and questions (default: 0)")
    add.set_defaults(run=make_questions)


def make_questions(args: argparse.Namespace) -> None:
    """Writes synthetic questions as a parquet file."""
    from ullsam.data.question_files import write_questions
    from ullsam.data.questions import synthetic_questions

    print(f"written to {write_questions(args.out, synthetic_questions(args.count, args.seed))}")


def microvqa(args: argparse.Namespace) -> None:
    """Asks every question by every method and with every kind of image; goes on where an earlier run stopped."""
    from ullsam.accel.distributed import distributed_state
    from ullsam.evaluation.protocol import report
    from ullsam.files import write_json

    _check(args)
    questions, model = _questions(args), open_model(args.model, args.seed)
    runs = [_run(args, model, questions, method, image) for method in args.method for image in args.image]
    if not distributed_state().is_main_process:
        return
    words = [_short(word) for word in args.words]
    results = {"results": [{k: v for k, v in run.items() if k != "rows"} for run in runs], "differences": _differences(runs)}
    write_json(args.out, report([results], shlex.join(["python", "-m", "ullsam", *words])))
    print(f"{_table(runs, results['differences'])}\nwritten to {args.out}")


def open_model(name: str, seed: int = 0):
    """Who answers: "random", a model of ours by name or folder, or a vision-language model of Hugging Face.

    Raises:
        InputError: no such model, no network, or a model of another kind.
    """
    from ullsam.accel.distributed import device
    from ullsam.lab.microvqa import RandomGuess
    from ullsam.lab.vision_language import VisionLanguageModel
    from ullsam.model import load

    if name == "random":
        return RandomGuess(seed)
    ours = len(Path(name).parts) == 1 and not Path(name).is_dir()
    return load(name, device=device()) if ours or _is_ours(Path(name)) else VisionLanguageModel.load(name, device())


def _is_ours(folder: Path) -> bool:
    from ullsam.files import read_json

    return folder.is_dir() and "model_type" not in read_json(folder / "config.json")


def _check(args: argparse.Namespace) -> None:
    from ullsam.lab.microvqa import IMAGES, METHODS

    unknown = [x for x in args.method if x not in METHODS] + [x for x in args.image if x not in IMAGES]
    if unknown:
        raise InputError(f"{unknown[0]} is no method of {', '.join(METHODS)} and no image of {', '.join(IMAGES)}; use one.")
    if Path(args.out).is_dir():
        raise InputError(f"--out {args.out} is a folder; name a file, for example {Path(args.out) / 'microvqa.json'}.")
    if args.limit is not None and args.limit < 1 or args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise InputError("--limit and --max-new-tokens are 1 or more; give larger numbers or leave them out.")


def _questions(args: argparse.Namespace) -> list:
    from ullsam.data.corpus import spaced
    from ullsam.data.question_files import read_questions
    from ullsam.data.questions import synthetic_questions

    if args.data == "synthetic":
        return spaced(synthetic_questions(args.count, args.seed), args.limit)
    return spaced(read_questions(args.data, args.split), args.limit)


def _run(args: argparse.Namespace, model, questions: list, method: str, image: str) -> dict:
    from ullsam.lab.microvqa import run

    out = Path(args.out)
    answers = out.with_name(f"{out.stem}.{method}.{image}.jsonl")
    length = args.max_new_tokens or LENGTHS[method]
    result = run(model, questions, method, image, args.seed, length, answers, progress=True)
    return {"model": _short(args.model), "data": _short(args.data), "answers": answers.name, **result}


def _differences(runs: list[dict]) -> list[dict]:
    """The first kind of image against each other one, method by method."""
    from ullsam.lab.microvqa import difference

    found = []
    for other in runs:
        first = next(run for run in runs if run["method"] == other["method"])
        if other is not first:
            pair = {"method": other["method"], "first": first["image"], "second": other["image"]}
            found.append(pair | difference(first, other, other["seed"]))
    return found


def _table(runs: list[dict], differences: list[dict]) -> str:
    from ullsam.evaluation.protocol import format_table

    lines = [format_table([_line(run) for run in runs])]
    for d in differences:
        low, high = d["interval"]
        lines.append(f"{d['method']}: image {d['first']} minus {d['second']}: {d['mean']:+.3f} [{low:+.3f}, {high:+.3f}]")
    return "\n".join(lines)


def _line(run: dict) -> dict:
    low, high = run["interval"]
    tasks = {part["letter"]: part["accuracy"] for part in run["per_task"].values()}
    return {
        "model": run["model"],
        "data": run["data"],
        "method": run["method"],
        "image": run["image"],
        "n": run["n_questions"],
        "accuracy": run["accuracy"],
        "95 %": f"{low:.3f}-{high:.3f}",
        **{k: tasks.get(k) for k in "VHE"},
        "chance": run["chance"],
        "bad": run["bad_response_rate"],
    }


def _short(word: str) -> str:
    """A path of this machine by its last part."""
    return Path(word).name if Path(word).is_absolute() else word
