"""The house rules: which room may import which, how large the core may be, and where the paper's equations stand.

Every import of the package's own modules counts, also one inside a function or under TYPE_CHECKING.
"""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ullsam"
CORE = "core"  # the modules directly in ullsam/

# room -> rooms (or single modules of the core) that it may import beside itself; "*" is every room
ALLOWED = {
    CORE: {"data", "accel", "files", "pretrained"},
    "files": {"errors", "data"},
    "accel": {"errors", "data"},
    "pretrained": {"accel", "config", "errors", "files"},
    "data": {"errors", "files", "types", "config", "sbr"},
    "tiny": {CORE, "files", "data", "accel", "pretrained"},
    "variants": {CORE},
    "checkpoints": {CORE, "files", "data", "accel", "pretrained", "tiny", "variants"},
    "evaluation": {CORE, "files", "data", "accel", "pretrained", "tiny", "checkpoints", "variants"},
    "plots": {CORE, "files", "data"},
    "widgets": {CORE, "files", "data", "plots", "evaluation", "checkpoints"},
    "lab": {CORE, "files", "data", "accel", "pretrained", "tiny", "checkpoints", "evaluation", "plots"},
    "cli": {"*"},
}
# single modules that may import what their room may not
ALSO = {"ullsam.__main__": {"cli"}}

CORE_FILES, CORE_LINES, ALL_LINES = 16, 2500, 20_000
EQUATIONS = ("Eq. 1", "Eq. 2", "Eq. 3", "Eq. 4")
NAMES_EQUATIONS = {"widgets/sbr_explorer.py"}  # tells students on the page which case of an equation was used
LIGHT = ("torch", "transformers", "matplotlib", "cv2", "scipy", "pandas")  # what `import ullsam` must not load

# tests/unit/ROOM/test_X.py that belong to no single module ROOM/X.py, and what they test
OF_NO_MODULE = {
    "test_documents.py": "README.md, CONTRIBUTING.md, docs/ and the other pages",
    "test_environment.py": "pyproject.toml, environment.yml, binder/, Makefile",
    "test_imports.py": "the package as a whole",
    "test_init.py": "__init__.py",
    "test_notebooks.py": "notebooks/",
    "checkpoints/test_golden.py": "numbers of the official code, kept in a file",
    "checkpoints/test_paper_size.py": "checkpoints of the paper's size",
    "lab/test_bench_paper.py": "tests/benchmarks/bench_paper.py",
}


@dataclass(frozen=True)
class Import:
    """One import of a module of the package by another."""

    source: str  # module that imports
    target: str  # module that is imported
    line: int

    def __str__(self):
        return f"{path_of(self.source)}:{self.line} imports {self.target}"


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def path_of(module):
    return FILES[module].relative_to(ROOT).as_posix()


def room_of(module):
    parts = module.split(".")
    in_room = len(parts) > 2 or (len(parts) == 2 and FILES[module].name == "__init__.py")
    return parts[1] if in_room else CORE


def named_modules(node, module):
    """The dotted names that an import statement (or a call of import_module with a plain text) asks for."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = module.split(".") if FILES[module].name == "__init__.py" else module.split(".")[:-1]
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
        return [x.value for x in node.args[:1] if isinstance(x, ast.Constant) and isinstance(x.value, str)]
    return []


def closest_module(name):
    """The module that a dotted name lies in: ullsam.data.io.Square -> ullsam.data.io; None for other packages."""
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or None


def own_imports(module):
    tree = ast.parse(FILES[module].read_text("utf-8"))
    names = [(name, node.lineno) for node in ast.walk(tree) for name in named_modules(node, module)]
    found = {(line, target) for name, line in names if (target := closest_module(name))}
    return [Import(module, target, line) for line, target in sorted(found) if target != module]


IMPORTS = [x for module in FILES for x in own_imports(module)]


def is_allowed(imported):
    source, target = room_of(imported.source), room_of(imported.target)
    allowed = ALLOWED.get(source, set()) | ALSO.get(imported.source, set())
    return (
        source == target or bool(allowed & {target, "*"}) or (target == CORE and imported.target.split(".")[-1] in allowed)
    )


def report(lines):
    return "\n  ".join(["", *lines])


def test_every_room_has_a_rule():
    rooms = {room_of(module) for module in FILES}
    assert rooms <= set(ALLOWED), f"rooms without a rule in ALLOWED: {sorted(rooms - set(ALLOWED))}"


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_what_it_may(room):
    wrong = [str(x) for x in IMPORTS if room_of(x.source) == room and not is_allowed(x)]
    assert not wrong, f"{room} may import only {sorted(ALLOWED[room])}:{report(wrong)}"


def test_modules_import_each_other_by_their_own_names():
    """Names of `ullsam` itself are found when first used: behind `from ullsam import load` any cycle could hide."""
    wrong = [str(x) for x in IMPORTS if x.target == "ullsam"]
    assert not wrong, f"import from the module that defines the name, not from the package:{report(wrong)}"


def shortest_cycle(start, graph):
    """The imports of a shortest way from a module back to itself, or []."""
    ways, seen = [[x] for x in graph.get(start, [])], set()
    while ways:
        way = ways.pop(0)
        here = way[-1].target
        if here == start:
            return way
        if here not in seen:
            seen.add(here)
            ways += [[*way, x] for x in graph.get(here, [])]
    return []


def test_no_import_cycles():
    graph = {module: [x for x in IMPORTS if x.source == module] for module in FILES}
    cycles = {}
    for module in FILES:
        way = shortest_cycle(module, graph)
        if way:
            cycles[frozenset(x.source for x in way)] = way
    lines = [line for way in cycles.values() for line in ["cycle:", *(f"  {x}" for x in way)]]
    assert not cycles, f"{len(cycles)} import cycles, those in functions and under TYPE_CHECKING included:{report(lines)}"


def line_count(path):
    return len(path.read_text("utf-8").splitlines())


def test_the_core_is_read_in_an_afternoon():
    sizes = {path.name: line_count(path) for path in PACKAGE.glob("*.py")}
    largest = sorted(sizes.items(), key=lambda item: -item[1])
    assert len(sizes) <= CORE_FILES, f"{len(sizes)} files at the top of ullsam/, at most {CORE_FILES}: {sorted(sizes)}"
    assert sum(sizes.values()) <= CORE_LINES, f"{sum(sizes.values())} lines of core, at most {CORE_LINES}: {largest}"


def test_the_package_is_compact():
    rooms = {}
    for module, path in FILES.items():
        rooms[room_of(module)] = rooms.get(room_of(module), 0) + line_count(path)
    total = sum(rooms.values())
    assert total < ALL_LINES, f"{total} lines in ullsam/, fewer than {ALL_LINES} wanted: {rooms}"


def definitions_with(text, path):
    """The functions and classes of a file, and the module outside of them, whose lines hold a text."""
    source = path.read_text("utf-8")
    spans = [(x.name, x.lineno, x.end_lineno) for x in ast.parse(source).body if hasattr(x, "name")]
    pattern = re.compile(rf"{re.escape(text)}(?!\d)")
    lines = [i for i, line in enumerate(source.splitlines(), 1) if pattern.search(line)]
    owners = {next((name for name, first, last in spans if first <= i <= last), "module level"): i for i in lines}
    return [f"{path.relative_to(ROOT).as_posix()}:{line} ({name})" for name, line in owners.items()]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_an_equation_stands_at_one_definition(equation):
    paths = [path for path in FILES.values() if path.relative_to(PACKAGE).as_posix() not in NAMES_EQUATIONS]
    places = [place for path in paths for place in definitions_with(equation, path)]
    assert len(places) == 1, f"{equation} must stand at exactly one function or class, not {len(places)}:{report(places)}"


def module_under(name):
    """ROOM/test_X.py -> the file ROOM/X.py or the room ROOM/X/; ROOM/test_ROOM.py tests the room as a whole."""
    room, stem = PACKAGE / name.parent, name.stem.removeprefix("test_")
    choices = [room / f"{stem}.py", room / stem / "__init__.py"]
    return choices + [room / "__init__.py"] if stem == room.name else choices


def test_unit_tests_mirror_the_package():
    tests = ROOT / "tests" / "unit"
    names = [path.relative_to(tests) for path in sorted(tests.rglob("test_*.py"))]
    lost = [name for name in names if name.as_posix() not in OF_NO_MODULE and not any(map(Path.is_file, module_under(name)))]
    wrong = [f"tests/unit/{name} has no {module_under(name)[0].relative_to(ROOT)}" for name in lost]
    wrong += [f"OF_NO_MODULE names {name}, which is not there" for name in OF_NO_MODULE if not (tests / name).is_file()]
    assert not wrong, report(wrong)


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, ullsam; print(*sorted(set({LIGHT!r}) & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert not loaded, f"`import ullsam` loads {loaded}"
