"""Measures peak memory and speed of training steps, with the trainer's own session. Latents are
random: photos are encoded once, before the steps, which `whole_run.py` measures."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainer import families, memory
from trainer.data.batches import BatchStream
from trainer.data.examples import Example
from trainer.data.latents import CachedLatents
from trainer.families.base import Framing, ModelFamily
from trainer.loop import number_formats
from trainer.methods.base import Method
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.settings.config import (
    DatasetConfig,
    FrozenWeights,
    OptimizerConfig,
    Precision,
    PriorConfig,
    TrainingConfig,
    Weights,
)
from trainer.training.session import Session

from .bench import (
    NUM_PHOTOS,
    Bench,
    Memory,
    OutOfTime,
    in_a_line,
    require_time,
    say,
    synchronize,
    within,
)

WARM_UP = 4
"""Steps before the timed ones, in which libraries choose kernels and the optimizer creates its
state."""
MAX_SKIPPED = 20
"""Further steps that fp16 may skip until it has found a loss scale."""
INTERVALS = 5
INTERVAL_SECONDS = 0.5
INTERVAL_STEPS = 2, 20
"""The minimum and maximum number of steps in an interval."""
UNET, TEXT, CLASS = "U-Net", "U-Net and text encoder", "U-Net, with class images"
TEXT_AND_CLASS = "U-Net and text encoder, with class images"
LORA = "LoRA of rank 16"
PROMPT, CLASS_PROMPT = "a photo of sks dog", "a photo of a dog"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The settings of one measurement."""

    trains: str
    batch_size: int
    """The number of photos. Class images are added to them."""
    precision: Precision
    optimizer: str
    gradient_checkpointing: bool
    channels_last: bool = False
    weights: Weights = "fp32"
    frozen_weights: FrozenWeights = "precision"
    gradient_release: bool = False

    def config(self, checkpoint: Path, resolution: int) -> TrainingConfig:
        has_class_images = self.trains in (CLASS, TEXT_AND_CLASS)
        return TrainingConfig(
            base=checkpoint,
            dataset=DatasetConfig(photos=(checkpoint,), prompt=PROMPT, resolution=resolution),
            prior=PriorConfig(weight=float(has_class_images), prompt=CLASS_PROMPT),
            optimizer=OptimizerConfig(name=self.optimizer),
            batch_size=self.batch_size,
            precision=self.precision,
            gradient_checkpointing=self.gradient_checkpointing,
            channels_last=self.channels_last,
            weights=self.weights,
            frozen_weights=self.frozen_weights,
            gradient_release=self.gradient_release,
        )

    def method(self) -> Method:
        if self.trains == LORA:
            return LoRA()
        return FullFineTune(train_text_encoder=self.trains in (TEXT, TEXT_AND_CLASS))


def measure_each(
    settings: Sequence[Setting], bench: Bench, deadline: float
) -> Iterator[dict[str, Any]]:
    """Yield a row for each setting, even if it fails."""
    for setting in within(deadline, settings):
        yield {**asdict(setting), **attempt(partial(_measure, setting, bench, deadline))}


def attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was measured, or the error."""
    try:
        return measure()
    except OutOfTime:
        raise
    except memory.OUT_OF_MEMORY:
        return {"is_out_of_memory": True}
    except Exception as error:
        say(traceback.format_exc())
        return {"error": in_a_line(error)}


def _measure(setting: Setting, bench: Bench, deadline: float) -> dict[str, Any]:
    checkpoint = bench.checkpoint  # writing it needs memory that does not count
    taken = Memory(bench.device)
    rates = steps_per_second(open_session(setting, checkpoint, bench), deadline)
    return {**taken.peaks(), "steps_per_second": rates}


def open_session(setting: Setting, checkpoint: Path, bench: Bench) -> Session:
    """A new session on random latents."""
    config, method = setting.config(checkpoint, bench.shape.resolution), setting.method()
    formats = number_formats(config, method)
    model = families.load(checkpoint, bench.device, formats=formats)
    trainable = method.attach(model, config, [])
    photos = latents(model, bench.shape.resolution, PROMPT, is_prior=False)
    prior = latents(model, bench.shape.resolution, CLASS_PROMPT, is_prior=True)
    stream = BatchStream(photos, prior if config.prior.weight else {}, config)
    return Session(config, model, trainable, stream)


def steps_per_second(session: Session, deadline: float) -> list[float]:
    """The speed in each interval, after a warm-up."""
    seconds = warm_up(session, deadline)
    fewest, most = INTERVAL_STEPS
    num_steps = min(most, max(fewest, round(INTERVAL_SECONDS / seconds)))
    rates: list[float] = []
    for _ in range(INTERVALS):
        if rates and time.monotonic() > deadline:
            break
        rates.append(num_steps / _seconds_of(session, num_steps))
    return rates


def warm_up(session: Session, deadline: float) -> float:
    """Run the warm-up. Return the seconds of the last step."""
    made = 0
    for _ in range(WARM_UP + MAX_SKIPPED):
        require_time(deadline)
        synchronize(session.model.device)
        started = time.monotonic()
        made += session.step() is not None  # None: fp16 has skipped it
        synchronize(session.model.device)
        if made == WARM_UP:
            return time.monotonic() - started
    raise OutOfTime


def _seconds_of(session: Session, num_steps: int) -> float:
    """The seconds of this number of steps, not counting those that fp16 skipped."""
    synchronize(session.model.device)
    started, made = time.monotonic(), 0
    while made < num_steps:
        made += session.step() is not None
    synchronize(session.model.device)
    return time.monotonic() - started


def latents(
    model: ModelFamily, resolution: int, caption: str, *, is_prior: bool
) -> dict[Example, CachedLatents]:
    side, generator = (
        resolution // model.latent_factor,
        torch.Generator().manual_seed(int(is_prior)),
    )
    shape, size = (model.latent_channels, side, side), (resolution, resolution)
    return {
        Example(Path(f"{number}.png"), (caption,), is_prior): CachedLatents(
            torch.randn(shape, generator=generator),
            torch.full(shape, 0.1),
            Framing(original_size=size, crop=(0, 0), size=size),
        )
        for number in range(NUM_PHOTOS)
    }


def describe(row: dict[str, Any]) -> str:
    """The row as one line."""
    what = f"{row['trains']}, batch {row['batch_size']}"
    if "error" in row or "is_out_of_memory" in row:
        return f"{what}: {row.get('error', 'out of memory')}"
    figures = []
    if row["allocated"] is not None:
        figures += [f"{row['allocated']:.2f} GB", f"{row['reserved']:.2f} GB reserved"]
    if rates := row["steps_per_second"]:
        median = statistics.median(rates)
        figures.append(f"{median:.2f} steps/s ({min(rates):.2f} to {max(rates):.2f})")
    return f"{what}: {', '.join(figures)}"
