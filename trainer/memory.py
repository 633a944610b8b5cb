"""Out-of-memory errors, with advice on what to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch

from .hardware import OUT_OF_MEMORY as OUT_OF_MEMORY
from .hardware import is_out_of_memory
from .precision import computes_in_bf16
from .settings.config import TrainingConfig

CPU = torch.device("cpu")
LARGE_OPTIMIZERS = ("AdamW", "Prodigy", "Lion", "Adafactor")
"""Optimizers whose state is larger than that of 8-bit AdamW."""


@contextmanager
def explained(when: str, advice: Callable[[], str]) -> Iterator[None]:
    """Turn any out-of-memory error inside into one of OUT_OF_MEMORY that says when it happened and
    what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        is_device = isinstance(error, torch.cuda.OutOfMemoryError)
        kind = torch.cuda.OutOfMemoryError if is_device else MemoryError
        raise kind(f"Out of memory {when}. {advice()}") from error


def reset_peak(device: torch.device) -> None:
    """Start a new measurement of `used_megabytes`, without what was allocated before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def used_megabytes(device: torch.device) -> float:
    """Return the peak memory on a CUDA device since `reset_peak`; on other devices, the memory that
    the process uses now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return float(psutil.Process().memory_info().rss) / 2**20


def training_advice(
    config: TrainingConfig,
    *,
    trains_text_encoder: bool,
    resolution: int,
    trained: str = "checkpoint",
    device: torch.device = CPU,
) -> str:
    """Return which settings to change to use less memory, most effective first: those with which
    the run can resume, then others. Leaves out those that are set already. `trained`: what the
    run trains: "checkpoint" if the model's own weights, otherwise "lora" or "embedding"."""
    same_run = _advice_for_this_run(config)
    of_weights = _advice_for_weights if trained == "checkpoint" else _advice_for_frozen_weights
    another_run = [*of_weights(config, device)]
    if trains_text_encoder:
        another_run.append("switch off train_text_encoder, so that captions are encoded only once")
    if trained == "lora":
        another_run.append("lower rank")
    another_run.append(f"lower dataset.resolution (now {resolution})")
    advice = f"To use less, most effective first: {'; '.join([*same_run, *another_run])}."
    if same_run:
        which = ("", "the first", "the first two", "the first three")[len(same_run)]
        advice += f" The run can resume with {which} changed; changing the others starts a new run."
    return advice


def _advice_for_this_run(config: TrainingConfig) -> list[str]:
    """Settings that change the result by rounding alone."""
    advice = []
    photos = config.photos_per_step
    if not config.gradient_checkpointing:
        advice.append("switch on gradient_checkpointing")
    if config.gradient_release and config.gradient_accumulation > 1:
        # Between the passes of a step all gradients are held, which needs more than the photos.
        advice.append(f"set batch_size to {photos} and gradient_accumulation to 1")
    elif config.batch_size > 1 and not config.gradient_release:
        advice.append(f"set batch_size to 1 and gradient_accumulation to {photos}")
    if config.gradient_release and not config.offload:
        advice.append("switch on offload")
    return advice


def _advice_for_weights(config: TrainingConfig, device: torch.device) -> Iterator[str]:
    """Settings by the bytes that they save for each trained weight."""
    has_bf16 = computes_in_bf16(device) and config.precision != "fp16"
    if config.optimizer.name in LARGE_OPTIMIZERS:
        yield "set optimizer.name to AdamW8bit"
    if has_bf16 and not config.gradient_release:
        yield "switch on gradient_release"
    if config.ema:
        yield "switch off ema"
    if config.precision == "fp32":
        yield f"set precision to {'bf16' if has_bf16 else 'fp16'}"
    if has_bf16 and config.weights == "fp32":
        yield "set weights to 24 bit"


def _advice_for_frozen_weights(config: TrainingConfig, device: torch.device) -> Iterator[str]:
    """Settings by the bytes that they save if the model's weights are not trained."""
    if config.precision == "fp32":
        yield f"set precision to {'bf16' if computes_in_bf16(device) else 'fp16'}"
    if config.frozen_weights == "precision":
        yield "set frozen_weights to 8 bit"
    if config.optimizer.name in LARGE_OPTIMIZERS:
        yield "set optimizer.name to AdamW8bit"
    if config.ema:
        yield "switch off ema"
