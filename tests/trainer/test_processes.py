import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer.processes import ALONE, Processes

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Third(Processes):
    """One of three processes, without the others."""

    def __init__(self, rank):
        self.rank, self.size = rank, 3


def together(*arguments, num_processes=2, **options):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(num_processes), "-m", *arguments,
    ]  # fmt: skip
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, **options
    )


def test_items_are_dealt_out_in_turn():
    thirds = [Third(rank) for rank in range(3)]
    assert [process.share_of("abcdefgh") for process in thirds] == ["adg", "beh", "cf"]
    assert [process.share_of("abcd", before=4) for process in thirds] == ["c", "ad", "b"]
    assert ALONE.share_of("abc", before=5) == "abc"


def test_two_processes_train_as_one():
    done = together("benchmarks.scaling", "--steps", "3", "--only", "3 photos, 2 class images")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\| 3 photos, 2 class images \| \d\.\de-0[6-9] \|", done.stdout)
