"""Compare the speed of training steps on the CPU: `python -m benchmarks.speed --reference FILE`.

The steps are ours and those of diffusers' `train_dreambooth.py`, on the same random weights in the
layout of Stable Diffusion 1.5 with layers of half their width, with photos of 256 x 256 pixels and
two photos a step. The last case compares our steps with and without gradient release. Both sides
are loaded at the same time and make one step in turn. The seconds are CPU time: with
OMP_NUM_THREADS=1, other programs hardly change them. The script needs the packages that it names
itself."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import reference
from benchmarks.gpu.bench import ROOT, Bench, say
from benchmarks.gpu.random_model import HALF, TINY, write_folder
from benchmarks.gpu.training import TEXT, UNET, Setting, open_session
from benchmarks.gpu.watched_script import Enough, run_script

PLAIN = Setting(
    trains=UNET, batch_size=2, precision="fp32", optimizer="AdamW", gradient_checkpointing=False
)
LEAN = Setting(
    trains=UNET, batch_size=2, precision="bf16", optimizer="AdamW8bit",
    gradient_checkpointing=False, weights="24 bit", gradient_release=True,
)  # fmt: skip


CASES: dict[str, tuple[Setting, Setting | None]] = {
    "unet": (PLAIN, None),
    "text-encoder": (replace(PLAIN, trains=TEXT), None),
    "checkpointed": (replace(PLAIN, gradient_checkpointing=True), None),
    "release": (LEAN, replace(LEAN, gradient_release=False)),
}
"""The two sides of each. None: the script, with the first one's settings."""
TAIL = 5
"""The number of lines shown of a side that failed."""
LEFT_OUT = "left out, because diffusers' train_dreambooth.py was not given (--reference FILE)"
Step = Callable[[], float]
"""Makes a step and returns its seconds of CPU time."""
WARM_UP = 2
"""Steps before the timed ones, in which the optimizer creates its state."""


@contextmanager
def side(job: Mapping[str, Any]) -> Iterator[Step]:
    """Start a process that makes the steps of a job, and make the first one. The process computes
    nothing between steps. Raises RuntimeError if it ends early."""
    connection, its = Pipe()
    with connection, tempfile.TemporaryFile() as output:
        with its:
            place = its.fileno()
            command = [sys.executable, "-m", "benchmarks.speed", "--worker", str(place)]
            process = subprocess.Popen(
                [*command, json.dumps(job)], cwd=ROOT, stdout=output, stderr=output,
                pass_fds=[place],
            )  # fmt: skip
        try:
            connection.recv()
            yield lambda: _step(connection)
        except EOFError:
            process.wait()
            output.seek(0)
            lines = output.read().decode("utf-8", "replace").splitlines()
            raise RuntimeError("a side ended early: " + " / ".join(lines[-TAIL:])) from None
        finally:
            process.kill()
            process.wait()


def _step(connection: Connection) -> float:
    connection.send(None)
    seconds: float = connection.recv()
    return seconds


class Turns:
    """The other end of a `side`. It is called after each step."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._started = 0.0

    def __call__(self) -> None:
        """Report the step's seconds, and wait until the next one is wanted. Raises Enough if none
        is."""
        try:
            self._connection.send(time.process_time() - self._started)
            self._connection.recv()
        except (EOFError, OSError):
            raise Enough from None
        self._started = time.process_time()


def work(turn: Turns, job: Mapping[str, Any]) -> None:
    """Make the steps of a job."""
    if "script" in job:
        run_script(job["script"], turn)
        return
    bench = _bench(Path(job["folder"]), is_tiny=job["is_tiny"])
    session = open_session(Setting(**job["setting"]), bench.folder / "random.safetensors", bench)
    with suppress(Enough):
        while True:
            session.step()
            turn()


def compare(ours: Step, other: Step, *, rounds: int, turns: int) -> list[tuple[float, float]]:
    """The median seconds of a step of each side, for each round."""
    for _ in range(WARM_UP):
        ours(), other()
    medians = []
    for _ in range(rounds):
        pairs = [(ours(), other()) for _ in range(turns)]
        mine, its = map(statistics.median, zip(*pairs, strict=True))
        medians.append((mine, its))
    return medians


def describe(name: str, medians: Sequence[tuple[float, float]]) -> str:
    """One line for a case."""
    ratios = [other / ours for ours, other in medians]
    seconds = [statistics.median(side) for side in zip(*medians, strict=True)]
    return (
        f"{name}: {statistics.median(ratios):.2f} times as fast "
        f"({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds), "
        f"{seconds[0]:.2f} s a step against {seconds[1]:.2f} s"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.worker:
        place, job = options.worker
        with Connection(int(place)) as connection:
            work(Turns(connection), json.loads(job))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        bench = _bench(Path(folder), options.reference, is_tiny=options.tiny)
        for name in options.cases:
            ours_setting, its_setting = CASES[name]
            if its_setting is None and bench.reference is None:
                say(f"{name}: {LEFT_OUT}")
                continue
            its_job = _our_job(its_setting, bench) if its_setting else _script(ours_setting, bench)
            with side(_our_job(ours_setting, bench)) as ours, side(its_job) as other:
                medians = compare(ours, other, rounds=options.rounds, turns=options.turns)
            say(describe(name, medians))
    return 0


def _our_job(setting: Setting, bench: Bench) -> dict[str, Any]:
    _ = bench.checkpoint  # is written now
    is_tiny = bench.shape is TINY
    return {"setting": asdict(setting), "folder": str(bench.folder), "is_tiny": is_tiny}


def _script(setting: Setting, bench: Bench) -> dict[str, Any]:
    model = bench.folder / "model"
    if not model.exists():
        write_folder(bench.networks(), model)
    return {"script": [str(bench.reference), *reference.arguments(setting, bench, model)]}


def _bench(folder: Path, script: Path | None = None, *, is_tiny: bool) -> Bench:
    return Bench(
        device=torch.device("cpu"), shape=TINY if is_tiny else HALF, folder=folder,
        reference=script and script.resolve(),
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    add = parser.add_argument
    add("--reference", type=Path, metavar="FILE", help="diffusers' train_dreambooth.py")
    add("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    add("--rounds", type=int, default=3)
    add("--turns", type=int, default=3, help="steps of each side in a round")
    # For the processes that make the steps, and for tests: a file descriptor and a job.
    add("--worker", nargs=2, help=argparse.SUPPRESS)
    add("--tiny", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
