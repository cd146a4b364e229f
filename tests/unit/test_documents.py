"""The pages for readers: their links lead somewhere, the files that they name exist, and the first ones stay short."""

import re
from pathlib import Path

import pytest

from ullsam.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(page for top in ("docs", "data", "ullsam") for page in (ROOT / top).rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
LONGEST = {"README.md": 150, "CONTRIBUTING.md": 120}  # lines


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_of_the_repository(name):
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text("utf-8"))
    inside = [target.partition("#")[0] for target in targets if not re.match(r"\w+:|#", target)]
    lost = [target for target in inside if not ((ROOT / name).parent / target).exists()]
    assert not lost, f"{name} links to {lost}"


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name):
    """A path in backticks is one of the repository or of the package."""
    paths = re.findall(r"`((?:[\w-]+/)+[\w.-]+\.(?:py|json|jsonl|csv|npz|png|md|ipynb))`", (ROOT / name).read_text("utf-8"))
    real = [path for path in paths if "ROOM" not in path]
    lost = [path for path in real if not (ROOT / path).exists() and not (ROOT / "ullsam" / path).exists()]
    assert not lost, f"{name} names {lost}"


@pytest.mark.parametrize("name, most", LONGEST.items())
def test_the_first_pages_are_short(name, most):
    lines = len((ROOT / name).read_text("utf-8").splitlines())
    assert lines <= most, f"{name} has {lines} lines, at most {most}"


@pytest.mark.parametrize("name", ["README.md", "data/weights/README.md"])
def test_pages_with_results_have_room_for_them(name):
    text = (ROOT / name).read_text("utf-8")
    assert text.count("<!-- results: make pages -->") == text.count("<!-- end of results -->") == 1


def test_the_page_of_commands_names_them_all():
    page = (ROOT / "docs" / "command_line.md").read_text("utf-8")
    named = set(re.findall(r"^\| `([\w-]+)", page, re.MULTILINE)) | set(re.findall(r"; `([\w-]+)`", page))
    assert named == set(COMMANDS)
