"""Counts how often a step starts work on the device and waits for it, and measures what the 8-bit
optimizer gains by not waiting."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from trainer.optimization import optimizers
from trainer.settings.config import OptimizerConfig
from trainer.training.session import Session

from . import training
from .bench import Bench, Memory, require_time, synchronize, within
from .goals import LEAN
from .random_model import plan
from .training import TEXT, Setting

SETTINGS = (
    LEAN,
    replace(LEAN, trains=TEXT),
    replace(LEAN, weights="fp32", gradient_release=False),
    replace(LEAN, weights="fp32", gradient_release=False, optimizer="AdamW"),
)
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""CUDA's names of the calls."""
FEW_STEPS, MANY_STEPS = 1, 4
"""Two profiles are compared, because a profile has some calls of its own."""
OPTIMIZER_STEPS = 5


def measure_launches(bench: Bench, deadline: float) -> Iterator[dict[str, Any]]:
    """Yield a row for each of SETTINGS, even if its measurement fails."""
    for setting in within(deadline, SETTINGS):
        yield {**asdict(setting), **training.attempt(partial(_measure, setting, bench, deadline))}


def _measure(setting: Setting, bench: Bench, deadline: float) -> dict[str, Any]:
    session = training.open_session(setting, bench.checkpoint, bench)
    training.warm_up(session, deadline)
    few, many = _calls(session, FEW_STEPS), _calls(session, MANY_STEPS)
    return per_step(few, many)


def _calls(session: Session, num_steps: int) -> Counter[str]:
    """How often each function was called in some steps."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if session.model.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(num_steps):
            session.step()
    return Counter({event.key: event.count for event in profiler.key_averages()})


def per_step(few: Mapping[str, int], many: Mapping[str, int]) -> dict[str, float]:
    """Launches and syncs per step, from the calls of FEW_STEPS and of MANY_STEPS."""
    steps = MANY_STEPS - FEW_STEPS
    return {
        name: sum(many.get(call, 0) - few.get(call, 0) for call in calls) / steps
        for name, calls in (("launches", LAUNCHES), ("syncs", SYNCS))
    }


def describe_launches(row: dict[str, Any]) -> str:
    """The row as one line."""
    if "launches" not in row:
        return training.describe(row)
    return f"{row['trains']}: {row['launches']:.0f} launches and {row['syncs']:.1f} syncs per step"


def measure_optimizers(bench: Bench, deadline: float) -> Iterator[dict[str, Any]]:
    """Yield a row for bitsandbytes' own optimizer step and one for ours, even if they fail."""
    import bitsandbytes

    builders: dict[str, Callable[[list[nn.Parameter]], Any]] = {
        "bitsandbytes' own step": lambda weights: bitsandbytes.optim.AdamW8bit(weights, lr=1e-6),
        "ours": lambda weights: optimizers.build(
            [{"params": weights, "lr": 1e-6}], OptimizerConfig(name="AdamW8bit")
        ),
    }
    for what, build in within(deadline, builders.items()):
        yield {"what": what, **training.attempt(partial(_time_steps, build, bench, deadline))}


def _time_steps(
    build: Callable[[list[nn.Parameter]], Any], bench: Bench, deadline: float
) -> dict[str, Any]:
    """The milliseconds of steps with the weights of the U-Net in fp32."""
    Memory(bench.device)
    shapes = [parameter.shape for parameter in plan(bench.shape)[0].parameters()]
    parameters = [nn.Parameter(torch.zeros(shape, device=bench.device)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer, milliseconds = build(parameters), []
    for _ in range(1 + OPTIMIZER_STEPS):
        require_time(deadline)
        synchronize(bench.device)
        started = time.monotonic()
        optimizer.step()
        synchronize(bench.device)
        milliseconds.append(1000 * (time.monotonic() - started))
    return {"milliseconds": milliseconds[1:]}  # the first step creates the state


def describe_optimizer(row: dict[str, Any]) -> str:
    """The row as one line."""
    if "milliseconds" not in row:
        return f"{row['what']}: {row.get('error', 'out of memory')}"
    times = row["milliseconds"]
    return f"{row['what']}: {min(times):.1f} to {max(times):.1f} ms"
