"""Kill one of several processes that train together, again and again:

    python -m benchmarks.soak_processes --kills 10

Each time a random one is killed at a random moment, and the seconds until all have ended are
measured. Then the run is resumed, with one process or with two. At the end its weights are compared
with those of a run that nothing has happened to. Needs Linux."""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from trainer.toy import MODEL, PHOTOS

BAR = 1e-5
"""The largest difference that counts as equal, relative to the weights' length."""
STEPS, STATE_EVERY = 40, 5
STARTING = 10
"""Seconds that are certain to fall on the start of a run, before its first step."""


class Launch:
    """A run by torchrun, or by python alone if `num_processes` is 1."""

    def __init__(self, folder: Path, num_processes: int, options: Sequence[str]) -> None:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        start = [*launcher, str(num_processes)] if num_processes > 1 else []
        folder.mkdir(exist_ok=True)
        self._path = folder / "log"
        self._log = self._path.open("w")
        self.process = subprocess.Popen(
            [sys.executable, *start, "-m", "trainer", "train", "--preset", "toy", "--device", "cpu",
             "--base", str(MODEL), "--dataset.photos", str(PHOTOS), "--prior.num-images", "8",
             "--dataset.prompt", "a photo of sks cup", "--prior.prompt", "a photo of a cup",
             "--steps", str(STEPS), "--output.state-every", str(STATE_EVERY),
             "--output.folder", str(folder), "--output.name", "trained", *options],
            stdout=self._log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def wait_for(self, moment: int) -> bool:
        """Wait until this step, or if it is negative, so many seconds. Return whether the run still
        goes on; it may have begun after that step."""
        until = time.monotonic() - moment
        while self.process.poll() is None:
            steps = re.findall(r"Training (\d+)/", self._path.read_text())
            if moment >= 0 and steps and int(steps[-1]) >= moment:
                return True
            if moment < 0 and time.monotonic() > until:
                return True
            time.sleep(0.05)
        return False

    def workers(self) -> list[psutil.Process]:
        """The training processes; [] before they exist."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "trainer" in child.cmdline()]

    def kill_one(self, chance: random.Random) -> str:
        """Kill one, wait for the others, and say what happened."""
        workers = self.workers() or [psutil.Process(self.process.pid)]
        victim = chance.choice(sorted(workers, key=lambda worker: worker.pid))
        victim.kill()
        started = time.monotonic()
        psutil.wait_procs(workers)
        seconds = time.monotonic() - started
        self.process.wait()
        self._log.close()
        number = sorted(worker.pid for worker in workers).index(victim.pid) + 1
        return f"killed process {number} of {len(workers)}; all had ended {seconds:.1f} s later"


def weights(folder: Path) -> torch.Tensor:
    tensors = load_file(folder / "trained.safetensors")
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


def last_words(folder: Path) -> str:
    lines = (folder / "log").read_text().replace("\r", "\n").splitlines()
    said = [line for line in lines if "has ended" in line or "Stopped" in line]
    return " / ".join(said[-2:])


def kill_until_finished(
    folder: Path, kills: int, chance: random.Random, options: Sequence[str]
) -> int:
    """Make a run, killing it at most so often. Return how often."""
    for number in range(kills):
        launch = Launch(folder, chance.choice([2, 2, 1]), options)
        if not launch.wait_for(chance.randint(-STARTING, STEPS - 1)):
            return number
        print(launch.kill_one(chance), last_words(folder), flush=True)  # noqa: T201
    Launch(folder, chance.choice([1, 2]), options).process.wait()
    return kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sharded", action="store_true", help="split the weights among both")
    arguments = parser.parse_args()
    options = ["--sharded"] if arguments.sharded else []
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        expected = Path(name, "expected")
        assert Launch(expected, 2, options).process.wait() == 0
        differences: list[float] = []
        kills = 0
        while kills < arguments.kills:
            folder = Path(name, f"killed {len(differences)}")
            kills += kill_until_finished(folder, arguments.kills - kills, chance, options)
            distance = (weights(folder) - weights(expected)).norm() / weights(expected).norm()
            differences.append(float(distance))
            print(f"finished; weights differ by {distance:.1e}", flush=True)  # noqa: T201
    print(f"{kills} kills, weights differ by at most {max(differences):.1e}")  # noqa: T201
    return 0 if max(differences) < BAR else 1


if __name__ == "__main__":
    sys.exit(main())
