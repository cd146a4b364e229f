"""What every test starts from: fixed seeds, few threads, and markers on notebook cells and on tests of rooms."""

import os
import random
from pathlib import Path

import nbval.plugin
import numpy as np
import pytest
import torch
from hypothesis import settings

UNIT = Path(__file__).parent / "unit"
MEASURED = {UNIT, UNIT / "tiny", UNIT / "checkpoints"}  # folders whose tests run most of the core

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_configure(config):
    """Leave the cores to the workers when there are several, and notebooks without coverage: with --cov nbval would wait
    for an answer of each kernel that does not come.
    """
    nbval.plugin.setup_coverage = nbval.plugin.teardown_coverage = lambda *_: None
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))


def pytest_collection_modifyitems(items):
    """Mark notebook cells, so that `-m nbval` and `-m "not nbval"` choose between them and plain tests; measure coverage
    in the tests nearest to the core only, since the measurement makes Python a third slower.
    """
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.nbval)
        if item.path.parent not in MEASURED:
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture(autouse=True)
def _seeds():
    """The same random numbers in every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
