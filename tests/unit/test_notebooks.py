"""What every notebook of the course has in common; nbval runs their cells."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from ullsam.cli import COMMANDS

FOLDER = Path(__file__).parents[2] / "notebooks"
COURSE = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
SETUP = 'import sys\n\nif "google.colab" in sys.modules:'


@pytest.fixture(params=COURSE, ids=lambda p: p.stem)
def notebook(request):
    return request.param, json.loads(request.param.read_text(encoding="utf-8"))


def text(cells, kind):
    return ["".join(c["source"]) for c in cells if c["cell_type"] == kind]


def test_the_course_is_complete():
    numbers = [int(p.stem[:2]) for p in COURSE]
    assert numbers == list(range(len(COURSE))) and len(COURSE) >= 10


def test_head(notebook):
    path, content = notebook
    first = "".join(content["cells"][0]["source"])
    assert first.startswith(f"# {path.stem[:2]} ") and "question" in first.lower()
    assert f"notebooks/{path.name}" in first and "colab" in first and "mybinder.org" in first


def test_one_setup_cell_the_same_everywhere(notebook):
    cells = text(notebook[1]["cells"], "code")
    setup = [c for c in cells if c.startswith(SETUP)]
    other = text(json.loads(COURSE[0].read_text(encoding="utf-8"))["cells"], "code")
    assert setup == [c for c in other if c.startswith(SETUP)] and len(setup) == 1 and cells[0] == setup[0]


def test_size_for_a_reader(notebook):
    path, content = notebook
    words = sum(len(re.findall(r"\w+", t)) for t in text(content["cells"], "markdown"))
    assert words < 3000, f"{words} words"
    assert max(len(c.splitlines()) for c in text(content["cells"], "code")) <= 25
    assert path.stat().st_size < 500_000 and 20 <= len(content["cells"]) <= 62


def test_committed_as_it_ran(notebook):
    code = [c for c in notebook[1]["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()]
    assert all(c["execution_count"] for c in code)
    assert not [o for c in code for o in c["outputs"] if o["output_type"] == "error"]
    counts = [c["execution_count"] for c in code]
    assert counts == sorted(counts)


def test_exercise_check_and_solution(notebook):
    content = notebook[1]
    solutions = [c for c in content["cells"] if "solution" in c["metadata"].get("tags", [])]
    assert solutions and all("assert" in "".join(c["source"]) for c in solutions[-1:])
    assert any("xercise" in t for t in text(content["cells"], "markdown"))


def test_something_is_asserted_and_nothing_names_a_machine(notebook):
    path, content = notebook
    assert sum("assert" in c for c in text(content["cells"], "code")) >= 5
    raw = path.read_text(encoding="utf-8")
    assert not re.findall(r".{0,40}(?:/root/|/work/|/home/\w|/tmp/[a-z]).{0,40}", raw)


def is_there(name):
    """Whether a dotted name such as ullsam.tiny.TinySAM is a module of the package or in one."""
    thing, path = import_module("ullsam"), "ullsam"
    for part in name.split(".")[1:]:
        path = f"{path}.{part}"
        try:
            thing = getattr(thing, part) if hasattr(thing, part) else import_module(path)
        except ImportError:
            return False
    return True


def test_what_it_names_is_there(notebook):
    source = "\n".join(text(notebook[1]["cells"], "markdown") + text(notebook[1]["cells"], "code"))
    names = set(re.findall(r"(?<![\w/.])ullsam(?:\.[A-Za-z_]\w*)+", source))
    commands = set(re.findall(r"-m ullsam ([a-z][\w-]*)", source))
    files = set(re.findall(r"(?<![\w/~])(?:data/(?:results|weights)|docs|tests|ullsam)/[\w/]+\.(?:json|md|py)\b", source))
    assert not {name for name in names if not is_there(name)}
    assert not commands - set(COMMANDS)
    assert not {file for file in files if not (FOLDER.parent / file).is_file()}
