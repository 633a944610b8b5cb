"""Runs another training script and times its steps with its own progress bar, then stops it:
`python -m benchmarks.gpu.watched_script FIGURES SCRIPT ARGUMENTS…` writes the measurements to
FIGURES."""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .bench import Memory, synchronize
from .training import INTERVALS, WARM_UP

BAR = "Steps"
"""The name of the script's progress bar."""
INTERVAL_STEPS = 8


class _Enough(BaseException):
    """The script must not catch this."""


class Watch:
    """Is called at each step, and measures intervals of several steps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps = 0
        self._moments: list[float] = []

    def step(self) -> None:
        self._steps += 1
        if self._steps >= WARM_UP and (self._steps - WARM_UP) % INTERVAL_STEPS == 0:
            synchronize(self._device)
            self._moments.append(time.monotonic())
            if len(self._moments) > INTERVALS:
                raise _Enough

    def steps_per_second(self) -> list[float]:
        """The speed in each interval."""
        pairs = zip(self._moments, self._moments[1:], strict=False)
        return [INTERVAL_STEPS / (after - before) for before, after in pairs]


def main() -> None:
    figures, sys.argv = Path(sys.argv[1]), sys.argv[2:]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    watch, taken, update = Watch(device), Memory(device), tqdm.update

    def watched(bar: tqdm, n: float = 1) -> bool | None:
        # A hidden progress bar has no name.
        if getattr(bar, "desc", "").startswith(BAR):
            watch.step()
        return update(bar, n)

    tqdm.update = watched
    with contextlib.suppress(_Enough):
        runpy.run_path(sys.argv[0], run_name="__main__")
    found = {"steps_per_second": watch.steps_per_second(), **taken.peaks()}
    figures.write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main()
