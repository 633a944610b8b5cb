"""Measure what saving states costs: `python -m benchmarks.states`.

Writes and reads a state of an eighth of the size that Stable Diffusion 1.5's U-Net and text encoder
have with AdamW, and prints what the whole would take. Then times training steps of the included
model with a state every 50 steps and without states, in pairs in alternating order, and prints the
difference with its range."""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.storage import states
from trainer.toy.demo import demo_config

T = TypeVar("T")

STATE_EVERY = 50
STEPS = 4 * STATE_EVERY + 1
"""One step after the last state, because the last step's report contains the speed."""
SD15_PARAMETERS = 859_520_964 + 123_060_480
"""The number of weights of the U-Net and the text encoder."""
SHARE = 1 / 8
CPU = torch.device("cpu")


def seconds_per_step(folder: Path, state_every: int) -> float:
    """The mean over a run without class images."""
    config = demo_config(folder)
    config = replace(
        config,
        prior=replace(config.prior, weight=0.0),
        output=replace(config.output, folder=folder, state_every=state_every),
        steps=STEPS,
    )
    # Saving happens between steps, and the reported speed includes it.
    result = train(config, FullFineTune(), device=CPU, runs=folder / "runs")
    return 1 / result.reports[-1].steps_per_second


def compare(num_pairs: int) -> list[float]:
    """How much longer a step takes with states, as a share, for each pair."""
    shares = []
    for number in range(-1, num_pairs):
        taken = {}
        order = (0, STATE_EVERY) if number % 2 else (STATE_EVERY, 0)
        for state_every in order:
            with tempfile.TemporaryDirectory() as folder:
                taken[state_every] = seconds_per_step(Path(folder), state_every)
        if number < 0:  # the first pair starts with cold caches and does not count
            continue
        shares.append(taken[STATE_EVERY] / taken[0] - 1)
        say(f"{taken[0]:.3f} s per step without, {taken[STATE_EVERY]:.3f} s with states")
    return shares


def large_state(folder: Path) -> None:
    count = int(SD15_PARAMETERS * SHARE)
    state = {name: torch.randn(count) for name in ("weights", "first moment", "second moment")}
    write, path = timed(lambda: states.save(folder, 1, state))
    size = path.stat().st_size
    read, _ = timed(lambda: states.load_newest([folder], up_to=1, mmap=False))
    say(
        f"Stable Diffusion 1.5, U-Net and text encoder, AdamW: {size / count:.1f} bytes per "
        f"weight, {size / SHARE / 1e9:.1f} GB; written in {write / SHARE:.0f} s, read in "
        f"{read / SHARE:.0f} s (measured on {SHARE:.3f} of it)."
    )


def timed(action: Callable[[], T]) -> tuple[float, T]:
    """The seconds that the action took, and its result."""
    started = time.monotonic()
    result = action()
    return time.monotonic() - started, result


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument(
        "--folder", type=Path, default=Path("out/states"), help="where the large state is written"
    )
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        large_state(Path(folder))
    if arguments.pairs:
        shares = compare(arguments.pairs)
        say(
            f"With a state every {STATE_EVERY} steps a step takes {statistics.mean(shares):+.1%} "
            f"({min(shares):+.1%} to {max(shares):+.1%}, {arguments.pairs} pairs)."
        )


if __name__ == "__main__":
    main()
