"""Running out of memory: what is said then, and what helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch

from .precision import computes_in_bf16
from .settings.config import TrainingConfig

CPU = torch.device("cpu")

OUT_OF_MEMORY = (torch.cuda.OutOfMemoryError, MemoryError)
"""The device's and the computer's, as they leave `explained`."""
_WORDS = ("out of memory", "can't allocate memory", "bad_alloc", "alloc_failed")
"""In the messages of devices and libraries that raise a plain RuntimeError."""


@contextmanager
def explained(when: str, advice: Callable[[], str]) -> Iterator[None]:
    """An error of memory that ran out comes out as one of OUT_OF_MEMORY that says when, and what
    helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        is_device = isinstance(error, torch.cuda.OutOfMemoryError)
        kind = torch.cuda.OutOfMemoryError if is_device else MemoryError
        raise kind(f"Out of memory {when}. {advice()}") from error


def reset_peak(device: torch.device) -> None:
    """Let `used_megabytes` tell of what is taken from now on, not of what others took before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def used_megabytes(device: torch.device) -> float:
    """The most memory taken on a CUDA device since `reset_peak`; elsewhere the process's memory
    now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return float(psutil.Process().memory_info().rss) / 2**20


def training_advice(
    config: TrainingConfig,
    *,
    trains_text_encoder: bool,
    resolution: int,
    device: torch.device = CPU,
) -> str:
    """What makes a step smaller and is not chosen yet, in the order of its effect."""
    photos = config.batch_size * config.gradient_accumulation
    same_run, another_run = [], []
    if not config.gradient_checkpointing:
        same_run.append("switch on gradient_checkpointing")
    if config.batch_size > 1:
        same_run.append(f"set batch_size to 1 and gradient_accumulation to {photos}")
    if config.precision == "fp32":
        half = "bf16" if computes_in_bf16(device) else "fp16"
        another_run.append(f"set precision to {half}")
    if config.optimizer.name in ("AdamW", "Prodigy", "Lion"):
        besides = " and switch off channels_last" if config.channels_last else ""
        another_run.append(f"set optimizer.name to AdamW8bit{besides}")
    if trains_text_encoder:
        another_run.append("switch off train_text_encoder, so that captions are read only once")
    if config.ema:
        another_run.append("switch off ema")
    another_run.append(f"lower dataset.resolution (now {resolution})")
    advice = f"What helps, most first: {'; '.join([*same_run, *another_run])}."
    if same_run:
        alone = "The first" if len(same_run) == 1 else "The first two"
        advice += f" {alone} can be changed for a run that goes on; the others begin another."
    return advice


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    is_kind = isinstance(error, OUT_OF_MEMORY)
    return is_kind or any(words in str(error).lower() for words in _WORDS)
