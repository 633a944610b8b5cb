"""Trains on two GPUs and on one, and compares the results, the speed and the memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from .bench import ROOT, Bench, LeftOut, OutOfTime

LEARNING = ("class images", "24 bit, gradients released", "textual inversion", "sharded")
"""Settings of `benchmarks.scaling` for the included model."""
FULL_SIZE = ("photos alone", "sharded, photos alone")
"""Those for Stable Diffusion 1.5."""
STEPS = 5
"""Of Stable Diffusion 1.5."""
ONE_GPU = "there are fewer than two GPUs"
_ROW = re.compile(r"\| (.+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|")
_NAMES = ("losses", "weights", "seconds", "seconds_together", "megabytes", "megabytes_together")


def measure(bench: Bench, deadline: float) -> Iterator[dict[str, Any]]:
    """Yield a row for each setting. Raises LeftOut with fewer than two GPUs."""
    if bench.device.type == "cuda" and torch.cuda.device_count() < 2:
        raise LeftOut(ONE_GPU)
    yield from _scaling(bench, deadline, "toy", ["--only", *LEARNING])
    full = ["--base", str(bench.checkpoint), "--steps", str(STEPS), "--only", *FULL_SIZE]
    yield from _scaling(bench, deadline, "Stable Diffusion 1.5", full)


def _scaling(
    bench: Bench, deadline: float, model: str, arguments: list[str]
) -> Iterator[dict[str, Any]]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = ["-m", "benchmarks.scaling", "--device", bench.device.type, *arguments]
    try:
        done = subprocess.run(
            [*start, *program], cwd=ROOT, capture_output=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=max(1.0, min(deadline - time.monotonic(), 3600.0)),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        for row in rows((error.stdout or b"").decode()):
            yield {"model": model, **row}
        raise OutOfTime from error
    for row in rows(done.stdout):
        yield {"model": model, **row}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line]
        raise RuntimeError(lines[-1] if lines else f"torchrun ended with {done.returncode}")


def rows(printed: str) -> Iterator[dict[str, Any]]:
    """The rows of the table that `benchmarks.scaling` prints."""
    for line in printed.splitlines():
        found = _ROW.fullmatch(line)
        if found and found[1] != "setting":
            yield {
                "what": found[1],
                **dict(zip(_NAMES, map(float, found.groups()[1:]), strict=True)),
            }


def describe(row: dict[str, Any]) -> str:
    """The row as one line."""
    return (
        f"{row['model']}, {row['what']}: weights differ by {row['weights']:.1e}, "
        f"{row['seconds']:.2f} s per step alone, {row['seconds_together']:.2f} s together"
    )
