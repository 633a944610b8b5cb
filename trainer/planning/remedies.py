"""What to change so that a run fits a device's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from ..methods.lora import LoRA
from ..methods.text_encoders import TextEncoderOptions
from ..optimization.optimizers import check_sharded
from ..settings.config import TrainingConfig
from .estimate import estimate
from .job import Changes, Job

Check = Callable[[TrainingConfig], None]
STEP = 64
"""Suggested resolutions are multiples of it."""
LEANER_OPTIMIZER = "AdamW8bit"
LOWER_RANK = 16
"""The rank that is suggested for LoRAs with a higher one."""


def advice(job: Job, budget: int, check: Check) -> str:
    """The first two changes that each make the run fit; otherwise as many as it takes."""
    fitting = []
    for text, changed in _remedies(job, budget, check):
        if estimate(changed).total <= budget:
            fitting.append(text)
        if len(fitting) == 2:
            break
    if fitting:
        return f"To make it fit, {', or '.join(fitting)}."
    taken = []
    while remedy := next(_remedies(job, budget, check), None):
        text, job = remedy
        taken.append(text)
        if estimate(job).total <= budget:
            return f"To make it fit, {'; '.join(taken)}."
    return "Choose a device with more memory."


def _remedies(job: Job, budget: int, check: Check) -> Iterator[tuple[str, Job]]:
    """Changes that each save memory and can be made, those that cost least first."""
    for text, changes in _settings(job):
        changed = job.changed(changes)
        try:
            check(changed.config)
            check_sharded(changed.config)
        except ValueError:
            continue
        yield text, changed
    if isinstance(job.method, LoRA) and not job.method.start:
        yield from _ranks(job, job.method)
    if isinstance(job.method, TextEncoderOptions) and job.method.trained_text_encoders:
        off: Any = {field.name: field.default for field in fields(TextEncoderOptions)}
        method = replace(job.method, **off)
        switches = " and ".join(f"train_{each}" for each in job.method.trained_text_encoders)
        yield f"switch off {switches}", replace(job, method=method)
    if resolution := _lower_resolution(job, budget):
        changed = job.changed({"dataset.resolution": resolution})
        yield f"lower dataset.resolution to {resolution} (now {job.resolution})", changed


def _ranks(job: Job, method: LoRA) -> Iterator[tuple[str, Job]]:
    if method.conv_rank:
        lower = replace(method, conv_rank=0)
        yield f"set conv_rank to 0 (now {method.conv_rank})", replace(job, method=lower)
    if method.rank > LOWER_RANK:
        min_rank = method.min_rank and min(method.min_rank, LOWER_RANK)
        lower = replace(method, rank=LOWER_RANK, min_rank=min_rank)
        yield f"lower rank to {LOWER_RANK} (now {method.rank})", replace(job, method=lower)


def _settings(job: Job) -> Iterator[tuple[str, Changes]]:
    config = job.config
    photos = config.photos_per_step
    if config.precision == "fp32":
        yield "set precision to bf16", {"precision": "bf16"}
    if config.optimizer.name in ("AdamW", "Adafactor", "Lion", "Prodigy"):
        changes = {"optimizer.name": LEANER_OPTIMIZER}
        yield f"set optimizer.name to {LEANER_OPTIMIZER}", changes
    if not config.gradient_checkpointing:
        yield "switch on gradient_checkpointing", {"gradient_checkpointing": True}
    if job.method.trained_parts:
        yield from _settings_of_weights(job)
    elif not job.is_in_8_bits:
        yield "set frozen_weights to 8 bit", {"frozen_weights": "8 bit"}
    if config.gradient_accumulation > 1 and config.gradient_release:
        yield (
            f"set batch_size to {photos} and gradient_accumulation to 1",
            {"batch_size": photos, "gradient_accumulation": 1},
        )
    if config.gradient_release and not config.offload and job.method.trained_parts:
        yield "switch on offload", {"offload": True}
    if config.ema:
        yield "switch off ema", {"ema": False}
    if config.batch_size > 1:
        yield f"set batch_size to 1 (now {config.batch_size})", {"batch_size": 1}


def _settings_of_weights(job: Job) -> Iterator[tuple[str, Changes]]:
    """Those that save memory if the model's own weights are trained."""
    config = job.config
    if job.num_processes > 1 and not config.sharded:
        yield "switch on sharded", {"sharded": True}
    if not config.gradient_release and config.precision != "fp16":
        yield "switch on gradient_release", {"gradient_release": True}
    if config.weights == "fp32" and config.precision == "bf16":
        yield "set weights to 24 bit", {"weights": "24 bit"}


def _lower_resolution(job: Job, budget: int) -> int:
    """The largest resolution that fits, but at least half of the model's own, below which it
    forgets how to draw well; 0 if there is none below the present one. Activations are
    proportional to the area."""
    half = job.model.resolution // 2
    if half >= job.resolution:
        return 0
    above, below = job.resolution**2, half**2
    most, least = (
        estimate(job.changed({"dataset.resolution": each})).total for each in (job.resolution, half)
    )
    share = (budget - least) / max(most - least, 1)
    fitting = (below + max(share, 0) * (above - below)) ** 0.5
    return max(half, int(min(fitting, job.resolution - 1)) // STEP * STEP)
