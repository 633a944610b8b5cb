"""The stages that run on the device, the most important first, each with its own time limit."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.settings.config import Precision

from . import device_tests, goals, launches, reference, training, two_gpus, whole_run
from .bench import Bench, LeftOut, OutOfTime, in_a_line, say
from .device_tests import run_tests
from .results import Results
from .training import CLASS, TEXT, UNET, Setting

SHORTEST = 10.0
"""Seconds that must be left to start a stage."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Yields rows until it is done or the deadline has passed."""

    name: str
    kind: str
    """What its rows contain, and their table on the page: see `page.py`."""
    what: str
    seconds: float
    """The time limit."""
    run: Callable[[Bench, float], Iterator[Row]]
    describe: Callable[[Row], str]


def run_stages(stages: Iterable[Stage], bench: Bench, results: Results, deadline: float) -> bool:
    """Run the stages one after the other, even if some fail, and store every row at once. Return
    whether none failed."""
    is_fine = True
    for stage in stages:
        started = time.monotonic()
        results.begin(stage.name, stage.kind, stage.what)
        say(f"{stage.name}: {stage.what}")
        status, reason = _run(stage, bench, results, deadline)
        seconds = time.monotonic() - started
        results.end(status, reason, seconds)
        say(f"  {status}{f': {reason}' if reason else ''} ({seconds:.1f} s)")
        is_fine = is_fine and status != "failed"
    return is_fine


def _run(stage: Stage, bench: Bench, results: Results, deadline: float) -> tuple[str, str]:
    """Run a stage. Return its status and the reason."""
    now = time.monotonic()
    if now + SHORTEST > deadline:
        return "left out", "the time was up"
    try:
        for row in stage.run(bench, min(deadline, now + stage.seconds)):
            results.add(row)
            say(f"  {stage.describe(row)}")
    except LeftOut as reason:
        return "left out", str(reason)
    except OutOfTime:
        return "unfinished", "its time was up"
    except Exception as error:
        say(traceback.format_exc())
        return "failed", in_a_line(error)
    failures = [failure for row in results.rows() for failure in _failures(row)]
    return ("failed", failures[0]) if failures else ("done", "")


def _failures(row: Row) -> list[str]:
    return [*row.get("failed", []), *([row["error"]] if "error" in row else [])]


def _trainings(precision: Precision, optimizer: str, *, checkpointing: bool = False,
               channels_last: bool = False, seconds: float = 45) -> Stage:  # fmt: skip
    """Measures steps of each kind of training, with one photo and with four."""
    kinds = [UNET] if channels_last else [UNET, TEXT, CLASS]
    settings = [
        Setting(
            trains=trains, batch_size=batch_size, precision=precision, optimizer=optimizer,
            gradient_checkpointing=checkpointing, channels_last=channels_last,
        )
        for trains in kinds
        for batch_size in (1, 4)
    ]  # fmt: skip
    extras = ["checkpointed"] * checkpointing + ["channels-last"] * channels_last
    whats = ["gradient checkpointing"] * checkpointing + ["channels last"] * channels_last
    return Stage(
        name="-".join([precision, optimizer.lower(), *extras]),
        kind="training",
        what=", ".join([f"steps in {precision}", optimizer, *whats]),
        seconds=seconds,
        run=lambda bench, deadline: training.measure_each(settings, bench, deadline),
        describe=training.describe,
    )


def _tests(bench: Bench, deadline: float) -> Iterator[Row]:
    return run_tests(deadline=deadline)


STAGES: Sequence[Stage] = (
    Stage(name="tests", kind="tests", what="the tests marked gpu", seconds=140, run=_tests,
          describe=device_tests.describe),
    _trainings("bf16", "AdamW8bit", checkpointing=True, seconds=75),
    Stage(name="goals", kind="goal", what="memory of lean steps", seconds=90,
          run=goals.measure_goals, describe=goals.describe),
    Stage(name="launches", kind="launches", what="launches and syncs of a step", seconds=60,
          run=launches.measure_launches, describe=launches.describe_launches),
    Stage(name="optimizer", kind="optimizer", what="AdamW8bit with and without its syncs",
          seconds=30, run=launches.measure_optimizers, describe=launches.describe_optimizer),
    Stage(name="whole-run", kind="run", what="one run from photos to a file", seconds=60,
          run=whole_run.run_whole, describe=whole_run.describe),
    Stage(name="reference", kind="reference", what="diffusers' train_dreambooth.py beside it",
          seconds=110, run=reference.run_reference, describe=training.describe),
    Stage(name="two-gpus", kind="processes", what="training on two GPUs and on one", seconds=180,
          run=two_gpus.measure, describe=two_gpus.describe),
    _trainings("bf16", "AdamW"),
    _trainings("fp16", "AdamW8bit", checkpointing=True),
    _trainings("fp32", "AdamW"),
    _trainings("bf16", "AdamW8bit"),
    _trainings("bf16", "AdamW", checkpointing=True),
    _trainings("bf16", "AdamW", checkpointing=True, channels_last=True),
    _trainings("fp16", "AdamW"),
    _trainings("fp32", "AdamW", checkpointing=True),
    _trainings("fp32", "AdamW8bit", checkpointing=True),
    _trainings("fp16", "AdamW8bit"),
    _trainings("fp16", "AdamW", checkpointing=True),
    _trainings("fp32", "AdamW8bit"),
)  # fmt: skip
"""In order of importance: if there is not enough time, the last ones are left out."""
