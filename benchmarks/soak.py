"""Kill runs in each of their phases and resume them:

    python -m benchmarks.soak --runs 100
    python -m benchmarks.soak --per-phase 20 --docs

Trains the included model for a few steps, with class images, scored previews, intermediate
checkpoints and states. Each run happens in processes that are killed (SIGKILL) at a random call
inside a phase: half of the kills at one that changes a file, if there are any. Phases with the
fewest kills so far come first. After every kill, all files with a final name must be complete. The
run is resumed until it has finished. Then its weights and losses must be those of a run that was
never killed, bit by bit, and so must be the names of the files that are left.

Needs an operating system that can fork. The last line is `N of RUNS identical`; the exit code is 1
unless all of them are."""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from trainer.evaluation import encoders
from trainer.loop import train
from trainer.methods.base import Method
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.methods.textual_inversion import TextualInversion
from trainer.settings.config import (
    OptimizerConfig,
    PreviewConfig,
    SamplingConfig,
    ScoringConfig,
    TrainingConfig,
)
from trainer.toy import JUDGE
from trainer.toy.demo import demo_config

from . import pages
from .soak_checks import difference, files, require_whole
from .soak_phases import PHASES, REPEATED, Counts, Moment, Watch

FORK = multiprocessing.get_context("fork")
"""A forked process has already loaded torch, so that a run takes only seconds."""
MAX_KILLS = 3
"""The most kills of one run. The number is drawn at random for each run."""
CPU = torch.device("cpu")
LEAN: dict[str, Any] = {
    "weights": "24 bit", "precision": "bf16", "gradient_release": True, "offload": True,
    "ema": True, "optimizer": OptimizerConfig(name="AdamW8bit"),
}  # fmt: skip
"""The settings that take the least memory."""
METHODS: dict[str, Method] = {
    "full": FullFineTune(),
    "lora": LoRA(
        rank=4, conv_rank=2, dropout=0.25, min_rank=1, dora=True, train_text_encoder=True,
        placeholder="<cup>", initializer="cup",
    ),
    "textual-inversion": TextualInversion(
        placeholder="<cup>", initializer="cup", templates="captions"
    ),
}  # fmt: skip
"""By the value of --method: LoRA with everything that draws random numbers or has a state."""
LEARNING_RATES = {"full": 1e-3, "lora": 1e-2, "textual-inversion": 3e-2}


@dataclass(frozen=True)
class Kind:
    """What the runs train, and with which settings."""

    method: str = "full"
    is_lean: bool = False

    def __str__(self) -> str:
        return f"{self.method}, lean" if self.is_lean else self.method


KINDS = [*map(Kind, METHODS), Kind(is_lean=True)]


def soak_config(folder: Path, kind: Kind) -> TrainingConfig:
    """A run in which everything happens that can be interrupted."""
    drawing = SamplingConfig(steps=2, guidance_scale=1, batch_size=2, seed=2)
    config = demo_config(folder)
    config = replace(
        config,
        prior=replace(config.prior, num_images=4, sampling=drawing, teacher_weight=0.5),
        preview=PreviewConfig(prompts=("a photo of sks <cup> cup",), every=1, sampling=drawing),
        output=replace(config.output, save_every=2, keep=1, state_every=2),
        dataset=replace(config.dataset, prompt="a photo of sks <cup> cup"),
        scoring=ScoringConfig(num_class_images=2),
        steps=4,
        batch_size=1,
        gradient_accumulation=2,
    )
    config = replace(config, **LEAN) if kind.is_lean else config
    if kind.method == "textual-inversion":  # it does not change the model
        config = config.replace({"prior": {"weight": 0.0, "teacher_weight": 0.0}, "ema": True})
    else:
        config = config.replace({"optimizer": {"anchor": 2.0}})
    # High enough that the best step is neither the first nor the last one.
    return config.replace({"optimizer": {"learning_rate": LEARNING_RATES[kind.method]}})


Measured = dict[str, Counts]
"""The calls in each phase of a run."""


def work(folder: Path, kind: Kind, moment: Moment | None, results: Connection | None) -> None:
    """Train or resume, until the moment to be killed if there is one. This runs in its own process.
    `results`: where to send the calls of each phase."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    watch = Watch(moment)
    if moment or results:
        watch.begin()
    train(
        soak_config(folder, kind), METHODS[kind.method], device=CPU, runs=folder / "runs",
        load_encoder=lambda: encoders.load(JUDGE, CPU),
    )  # fmt: skip
    watch.end()
    if results:
        results.send(watch.counts)


def was_killed(
    folder: Path, kind: Kind, moment: Moment | None = None, results: Connection | None = None
) -> bool:
    """Train or resume in a new process, and return whether it was killed before the end. Raises
    RuntimeError if it failed."""
    process = FORK.Process(target=work, args=(folder, kind, moment, results))
    process.start()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"The run in {folder} ended with the exit code {process.exitcode}.")
    return process.exitcode != 0


def measure(folder: Path, kind: Kind) -> Measured:
    """Run to the end without a kill. Return the calls in each phase."""
    receiver, sender = FORK.Pipe(duplex=False)
    assert not was_killed(folder, kind, results=sender)
    counts: Measured = receiver.recv()
    return counts


@dataclass
class Soak:
    """Kills and resumes runs of one kind."""

    kind: Kind
    expected: Path
    """The folder of a run that was never killed."""
    measured: Measured
    rng: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    """By phase."""
    num_runs: int = 0
    num_same: int = 0

    @property
    def phases(self) -> list[str]:
        """Those that the run has."""
        return [phase for phase, counts in self.measured.items() if counts.calls]

    def run(self, folder: Path, num_kills: int) -> None:
        """Run to the end with this many kills; fewer if the run ends before."""
        killed: list[str] = []
        while not killed:
            shutil.rmtree(folder, ignore_errors=True)
            killed = list(self._kill(folder, num_kills))
        assert not was_killed(folder, self.kind)
        fault = difference(folder, self.expected)
        self.kills.update(killed)
        self.num_runs += 1
        self.num_same += not fault
        print(f"{self.kind}, run {self.num_runs}, killed while {'; '.join(killed)}: "  # noqa: T201
              f"{fault or 'identical'}", flush=True)  # fmt: skip
        shutil.rmtree(folder)

    def _kill(self, folder: Path, num_kills: int) -> Iterator[str]:
        for moment in self._moments(num_kills):
            if not was_killed(folder, self.kind, moment):
                return
            for path in files(folder):
                require_whole(path)
            yield moment.phase

    def _moments(self, num_kills: int) -> Iterator[Moment]:
        """Random ones in the phases with the fewest kills so far, in the order of the run."""
        shuffled = self.rng.sample(self.phases, len(self.phases))
        rarest = sorted(shuffled, key=lambda phase: self.kills[phase])[:num_kills]
        for number, phase in enumerate(sorted(rarest, key=self.phases.index), start=1):
            counts = self.measured[phase]
            is_file_operation = bool(counts.file_operations) and self.rng.random() < 0.5
            most = counts.file_operations if is_file_operation else counts.calls
            if phase in REPEATED:  # a resumed run has fewer steps left
                most = max(1, most // number)
            yield Moment(phase, self.rng.randint(1, most), is_file_operation)


def table(soaks: list[Soak]) -> str:
    """The kills by phase and kind of run, in Markdown."""
    rows = [["Killed while", *(str(soak.kind) for soak in soaks)]]
    for phase in PHASES:
        counts = [str(soak.kills[phase]) if phase in soak.phases else "" for soak in soaks]
        rows.append([phase, *counts])
    rows.append(["all", *(str(soak.kills.total()) for soak in soaks)])
    rows.append(["identical runs", *(f"{s.num_same} of {s.num_runs}" for s in soaks)])
    return pages.table(rows)


def preload() -> None:
    """Load once what would otherwise be loaded in every forked process."""
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel  # noqa: F401


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument(
        "--per-phase", type=int, help="instead of --runs: until each phase has so many kills"
    )
    parser.add_argument(
        "--kills", type=int, help=f"kills per run; random from 1 to {MAX_KILLS} if not set"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="the most that it takes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--method", choices=METHODS, help="full if not set; with --per-phase all, and full with "
        "the leanest settings",
    )  # fmt: skip
    parser.add_argument("--lean", action="store_true", help="with the leanest settings")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/faults.md")
    arguments = parser.parse_args()
    is_one = arguments.method or arguments.lean or not arguments.per_phase
    kinds = [Kind(arguments.method or "full", arguments.lean)] if is_one else KINDS
    rng, until = random.Random(arguments.seed), time.monotonic() + 60 * arguments.minutes
    preload()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        soaks = []
        for number, kind in enumerate(kinds):
            expected = Path(name, f"expected{number}")
            soaks.append(Soak(kind, expected, measure(expected, kind), rng))
        while unfinished := [s for s in soaks if not is_done(s, arguments, until)]:
            for soak in unfinished:
                soak.run(Path(name, "run"), arguments.kills or rng.randint(1, MAX_KILLS))
    print(table(soaks))  # noqa: T201
    if arguments.docs:
        pages.write_between("kills", table(soaks))
    num_same, num_runs = sum(s.num_same for s in soaks), sum(s.num_runs for s in soaks)
    print(f"{num_same} of {num_runs} identical")  # noqa: T201
    return 0 if num_same == num_runs else 1


def is_done(soak: Soak, arguments: argparse.Namespace, until: float) -> bool:
    if time.monotonic() > until:
        return True
    if arguments.per_phase:
        return all(soak.kills[phase] >= arguments.per_phase for phase in soak.phases)
    return soak.num_runs >= arguments.runs


if __name__ == "__main__":
    sys.exit(main())
