"""Runs another training script and times its steps with its own progress bar, then stops it:
`python -m benchmarks.gpu.watched_script FIGURES SCRIPT ARGUMENTS…` writes the measurements to
FIGURES."""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .bench import Memory, synchronize
from .training import INTERVALS, WARM_UP

BAR = "Steps"
"""The name of the script's progress bar."""
INTERVAL_STEPS = 8


class Enough(BaseException):
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
                raise Enough

    def steps_per_second(self) -> list[float]:
        """The speed in each interval."""
        pairs = zip(self._moments, self._moments[1:], strict=False)
        return [INTERVAL_STEPS / (after - before) for before, after in pairs]


def main() -> None:
    figures, command = Path(sys.argv[1]), sys.argv[2:]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    watch, taken = Watch(device), Memory(device)
    run_script(command, watch.step)
    found = {"steps_per_second": watch.steps_per_second(), **taken.peaks()}
    figures.write_text(json.dumps(found), "utf-8")


def run_script(command: Sequence[str], on_step: Callable[[], None]) -> None:
    """Run a script with its arguments until `on_step`, which is called after each step, raises
    Enough."""
    update = tqdm.update

    def watched(bar: tqdm, n: float = 1) -> bool | None:
        # A hidden progress bar has no name.
        if getattr(bar, "desc", "").startswith(BAR):
            on_step()
        return update(bar, n)

    tqdm.update = watched
    sys.argv = list(command)
    with contextlib.suppress(Enough):
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
