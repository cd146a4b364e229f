"""Command line: python -m ullsam COMMAND, for what runs longer than a notebook."""

from __future__ import annotations

import argparse
import sys

from ullsam.errors import InputError


def train(args: argparse.Namespace) -> None:
    """Trains one row of the recipe table."""
    from ullsam.recipes import run_recipe

    print(f"Finished; the model is in {run_recipe(args.recipe, args.out, args.data)}")


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m ullsam", description="uLLSAM: segment and describe microscopy images.")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("train", help="train one of the recipes, or go on with it")
    add.add_argument("recipe", help="a name from ullsam/recipes.py, for example base")
    add.add_argument("--out", default="runs", help="folder that holds one folder per recipe (default: runs)")
    add.add_argument("--data", help="folder with corpora (default: ULLSAM_DATA)")
    add.set_defaults(run=train)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; a problem with the input is one sentence on standard error and exit code 2."""
    args = build_parser().parse_args(arguments)
    try:
        args.run(args)
    except InputError as error:
        print(f"ullsam: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
