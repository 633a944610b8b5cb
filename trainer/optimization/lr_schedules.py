"""Learning-rate schedules: functions from training progress to a multiplier of the learning rate.
The noise schedule is in `noise.py`."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..settings.config import OptimizerConfig

LR_SCHEDULES: dict[str, Callable[[float, int], float]] = {
    "constant": lambda progress, restarts: 1.0,
    "linear": lambda progress, restarts: 1 - progress,
    "cosine": lambda progress, restarts: _cosine(progress),
    "cosine with restarts": lambda progress, restarts: _cosine(progress * restarts % 1),
}
"""Schedules by the name that users choose. Each maps the share of steps done since warm-up, in
[0, 1), and the number of restarts to the multiplier."""


def multiplier(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the learning-rate multiplier of a step, counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return LR_SCHEDULES[config.lr_schedule](progress, config.num_restarts)


def ignores_total_steps(config: OptimizerConfig) -> bool:
    """Whether a step does not depend on the total number of steps: neither its learning rate nor
    how far weights are pulled back."""
    return config.lr_schedule == "constant" and config.anchor == 0


def check(config: OptimizerConfig, total_steps: int) -> None:
    """Raise ValueError for an unknown schedule, or a warm-up as long as the run."""
    if config.lr_schedule not in LR_SCHEDULES:
        raise ValueError(
            f"optimizer.lr_schedule must be one of {', '.join(LR_SCHEDULES)}, "
            f"got {config.lr_schedule!r}."
        )
    if config.warmup_steps >= total_steps:
        raise ValueError(
            f"optimizer.warmup_steps is {config.warmup_steps}, but the run has only {total_steps} "
            "steps, so the full learning rate would never be reached. Lower it or raise steps."
        )


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2
