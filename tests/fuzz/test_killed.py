"""Killed at any moment: what was confirmed is there afterwards, and the rest goes on to the same end as without it.

ULLSAM_KILLS sets how often each job is killed.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = os.environ.get("ULLSAM_KILLS", "3")


@pytest.mark.parametrize("job", ["Train", "Instances", "Export", "Evaluate", "PrepareData"])
def test_a_killed_job_loses_nothing_and_goes_on(job, tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("jobs.py")), job, str(tmp_path), KILLS, "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.split()[-1] == KILLS
