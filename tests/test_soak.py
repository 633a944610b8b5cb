"""A run that is killed several times ends as if it had never been killed. `make soak` repeats this
a hundred times."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.posix
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_killed_three_times_ends_with_the_same_weights(method):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--runs", "1", "--kills", "3",
         "--method", method],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "1 of 1 identical"
    assert "| all | 3 |" in done.stdout
