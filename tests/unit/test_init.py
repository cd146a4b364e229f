"""The package's names: imported when first used, and never mistaken for the module of the same name."""

import inspect
import subprocess
import sys

import ullsam


def python(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_every_name_exists_and_is_listed():
    assert all(getattr(ullsam, name) is not None for name in ullsam.__all__)
    assert set(ullsam.__all__) <= set(dir(ullsam))


def test_import_does_not_load_pytorch():
    assert python("import sys, ullsam; print({'torch', 'transformers', 'matplotlib'} & set(sys.modules))") == "set()"


def test_evaluate_is_the_function_and_modules_are_reached_whatever_was_imported_first():
    assert inspect.isfunction(ullsam.evaluate)
    code = "import ullsam.evaluation.protocol\nprint(type(ullsam.evaluate).__name__, ullsam.data.io.Square.__name__)"
    assert python(code) == "function Square"


def test_unknown_names_are_errors():
    assert not hasattr(ullsam, "no_such_name")
