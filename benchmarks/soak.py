"""Kill runs and resume them: `python -m benchmarks.soak --runs 100`.

Trains the included model for a few steps, with class images, previews, intermediate checkpoints and
states. Each run happens in processes that are killed (SIGKILL) at random moments, and is resumed
until it has finished. After every kill, all files with a final name must be complete. At the end,
each run's weights and losses are compared with those of a run that was never killed, bit by bit.

Needs an operating system that can fork. The last line is `N of RUNS identical`; the exit code is 1
unless all of them are."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from ctypes import c_char
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from trainer.cli.settings_file import read_toml
from trainer.loop import train
from trainer.methods.base import Method
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.observer import Observer, StepReport
from trainer.settings.config import (
    OptimizerConfig,
    PreviewConfig,
    SamplingConfig,
    TrainingConfig,
)
from trainer.toy.demo import demo_config

FORK = multiprocessing.get_context("fork")
"""A forked process has already loaded torch, so that a run takes only seconds."""
MAX_KILLS = 3
"""The most kills of one run. The number is drawn at random for each run."""
PHASE_LENGTH = 32
LEAN: dict[str, Any] = {
    "weights": "24 bit", "precision": "bf16", "gradient_release": True, "offload": True,
    "ema": True, "optimizer": OptimizerConfig(name="AdamW8bit", learning_rate=2e-4),
}  # fmt: skip
"""The settings that take the least memory."""
METHODS: dict[str, Method] = {
    "full": FullFineTune(),
    "lora": LoRA(
        rank=4, conv_rank=2, dropout=0.25, min_rank=1, dora=True, train_text_encoder=True,
        placeholder="<cup>", initializer="cup",
    ),
}  # fmt: skip
"""By the value of --method: LoRA with everything that draws random numbers or has a state."""


@dataclass(frozen=True)
class Kind:
    """What the runs train, and with which settings."""

    method: str = "full"
    is_lean: bool = False


def soak_config(folder: Path, kind: Kind) -> TrainingConfig:
    """A run in which everything happens that can be interrupted."""
    drawing = SamplingConfig(steps=2, guidance_scale=1, batch_size=2)
    config = demo_config(folder)
    config = replace(
        config,
        prior=replace(config.prior, num_images=4, sampling=drawing, teacher_weight=0.5),
        preview=PreviewConfig(prompts=("a photo of sks cup",), every=3, sampling=drawing),
        output=replace(config.output, save_every=2, keep=1, state_every=2),
        dataset=replace(config.dataset, prompt="a photo of sks <cup> cup"),
        steps=6,
        batch_size=1,
        gradient_accumulation=2,
    )
    config = replace(config, **LEAN) if kind.is_lean else config
    return config.replace({"optimizer": {"anchor": 2.0}})


class PhaseObserver(Observer):
    """Writes into shared memory what the run is doing."""

    def __init__(self, phase: Any) -> None:
        self._phase = phase

    def on_progress(self, activity: str, done: int, total: int) -> None:
        self._phase.value = activity.encode()[:PHASE_LENGTH]

    def on_start(self, total_steps: int) -> None:
        self._phase.value = b"Steps and saves"

    def on_step(self, report: StepReport) -> None:
        self._phase.value = b"Steps and saves"


def work(folder: Path, phase: Any, kind: Kind) -> None:
    """Train or resume. This runs in its own process."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    config = soak_config(folder, kind)
    train(
        config, METHODS[kind.method], device=torch.device("cpu"), observer=PhaseObserver(phase),
        runs=folder / "runs",
    )  # fmt: skip


def run_whole(folder: Path, kind: Kind) -> float:
    """Run to the end and return the seconds. Raises RuntimeError if the run fails."""
    started = time.monotonic()
    process = FORK.Process(target=work, args=(folder, FORK.Array(c_char, PHASE_LENGTH), kind))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"The run in {folder} ended with the exit code {process.exitcode}.")
    return time.monotonic() - started


def run_killed(
    folder: Path, num_kills: int, duration: float, rng: random.Random, kind: Kind
) -> list[str]:
    """Run to the end with this many kills. Return what each kill interrupted: at least the first
    one finds the run unfinished, later ones may not."""
    interrupted: list[str] = []
    while not interrupted:
        shutil.rmtree(folder, ignore_errors=True)
        # Each resumed run is shorter than the one before, so later kills come sooner.
        moments = [rng.uniform(0, duration / (kill + 1)) for kill in range(num_kills)]
        interrupted = list(_kill(folder, moments, kind))
        duration *= 0.8
    run_whole(folder, kind)
    return interrupted


def _kill(folder: Path, moments: list[float], kind: Kind) -> Iterator[str]:
    for seconds in moments:
        phase = FORK.Array(c_char, PHASE_LENGTH)
        process = FORK.Process(target=work, args=(folder, phase, kind))
        process.start()
        process.join(seconds)
        if process.exitcode == 0:  # it finished before it could be killed
            return
        if process.exitcode is not None:
            raise RuntimeError(f"The run in {folder} failed with the exit code {process.exitcode}.")
        process.kill()
        process.join()
        for path in files(folder):
            require_whole(path)
        unfinished = list(folder.rglob("*.part"))
        yield "Saving" if unfinished else phase.value.decode() or "Loading"


def files(folder: Path) -> list[Path]:
    """The files with a final name. Incomplete ones end in `.part`."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return [path for path in paths if not any(name.endswith(".part") for name in path.parts)]


def require_whole(path: Path) -> None:
    """Read a file to its end. Any exception means that it is damaged."""
    if path.suffix == ".safetensors":
        assert load_file(path)
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".pt":
        assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] in path.name, path
    elif path.suffix == ".json":
        assert json.loads(path.read_text("utf-8"))
    elif path.suffix == ".jsonl":
        # Lines are appended one by one. The last one may be incomplete, and readers expect that.
        for line in path.read_text("utf-8").splitlines()[:-1]:
            assert json.loads(line)
    elif path.suffix == ".toml":
        assert read_toml(path)
    else:
        raise AssertionError(f"Unknown kind of file: {path}")


def same(folder: Path, expected: Path) -> bool:
    """Whether both runs ended with the same weights and losses."""
    finals = (path.name for path in expected.glob("*.safetensors"))
    names = {name for name in finals if "-step" not in name}
    pairs = [(load_file(folder / name), load_file(expected / name)) for name in sorted(names)]
    weights = all(
        one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        for one, other in pairs
    )
    return weights and losses(folder) == losses(expected)


def losses(folder: Path) -> list[float]:
    (metrics,) = folder.glob("runs/*/metrics.jsonl")
    return [json.loads(line)["loss"] for line in metrics.read_text("utf-8").splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument(
        "--kills", type=int, help=f"kills per run; random from 1 to {MAX_KILLS} if not set"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", choices=METHODS, default="full")
    parser.add_argument("--lean", action="store_true", help="with the leanest settings")
    arguments = parser.parse_args()
    kind = Kind(arguments.method, arguments.lean)
    rng, interrupted, num_same = random.Random(arguments.seed), Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        expected = Path(name) / "expected"
        duration = run_whole(expected, kind)
        print(f"A run takes {duration:.1f} s.", flush=True)  # noqa: T201
        for number in range(1, arguments.runs + 1):
            folder = Path(name) / f"run{number}"
            kills = arguments.kills or rng.randint(1, MAX_KILLS)
            phases = run_killed(folder, kills, duration, rng, kind)
            interrupted.update(phases)
            is_same = same(folder, expected)
            num_same += is_same
            verdict = "identical" if is_same else "DIFFERENT"
            print(f"Run {number}, killed at {', '.join(phases)}: {verdict}", flush=True)  # noqa: T201
            shutil.rmtree(folder)
    print("Kills by what they interrupted:", dict(interrupted.most_common()))  # noqa: T201
    print(f"{num_same} of {arguments.runs} identical")  # noqa: T201
    return 0 if num_same == arguments.runs else 1


if __name__ == "__main__":
    sys.exit(main())
