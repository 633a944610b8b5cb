"""A sample of `make faults`: operations that fail, and power cuts, in one run of textual inversion.

The whole takes half an hour."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.posix
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's file operations")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_faults_of_the_disk_are_explained_and_the_next_run_ends_with_the_same_weights():
    command = ["-m", "benchmarks.faults", "--runs", "inversion", "--only", "states", "--limit", "2"]
    done = subprocess.run(
        [sys.executable, *command, "--workers", "1"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^\| all \| (\d+) \|.* (\d+) \|$", done.stdout, re.MULTILINE) == [
        ("2", "0"), ("2", "0"),
    ]  # fmt: skip


@pytest.mark.posix
def test_the_page_has_one_place_for_the_tables():
    from benchmarks import pages
    from benchmarks.faults.page import PLACE

    text, (start, end) = pages.PAGE.read_text("utf-8"), pages.marks(PLACE)
    assert (text.count(start), text.count(end)) == (1, 1)
    assert text.index(start) < text.index(end)
