"""What every stage is given: the device, a model of random weights, and where to put things."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from benchmarks.random_networks import Networks
from trainer import memory

from .random_model import Shape, build, write_checkpoint

Item = TypeVar("Item")
ROOT = Path(__file__).parents[2]
NUM_PHOTOS = 8
GB = 2**30
"""As the memory of cards is counted."""


class OutOfTime(Exception):
    """The stage has used up its time; what it measured before stays."""


class LeftOut(Exception):
    """The stage cannot run here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One run of the program."""

    device: torch.device
    shape: Shape
    folder: Path
    """For files that are deleted afterwards."""
    reference: Path | None = None
    """diffusers' train_dreambooth.py."""
    reference_model: Path | None = None
    """A model folder for it, in diffusers' layout; None makes one of random weights."""

    def networks(self) -> Networks:
        return build(self.shape, self.device)

    @cached_property
    def checkpoint(self) -> Path:
        """Random weights in one file, written when first asked for."""
        path = self.folder / "random.safetensors"
        write_checkpoint(self.networks(), path, self.shape.resolution)
        return path

    @cached_property
    def photos(self) -> Path:
        """A folder of pictures of noise."""
        return self._pictures("photos", seed=0)

    @cached_property
    def class_images(self) -> Path:
        return self._pictures("class", seed=1)

    def _pictures(self, name: str, *, seed: int) -> Path:
        folder, side = self.folder / name, self.shape.resolution
        folder.mkdir()
        rng = np.random.default_rng(seed)
        for number in range(NUM_PHOTOS):
            pixels = rng.integers(0, 256, size=(side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        return folder


class Memory:
    """The most memory taken on a device from now on, in GB; None where nobody counts it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        release(device)
        memory.reset_peak(device)

    def peaks(self) -> dict[str, float | None]:
        """Allocated: what tensors took. Reserved: what PyTorch held for them. Besides: what else
        is taken on the card, by CUDA itself and by other programs."""
        if self._device.type != "cuda":
            return dict.fromkeys(("allocated", "reserved", "besides"))
        free, total = torch.cuda.mem_get_info(self._device)
        held = torch.cuda.memory_reserved(self._device)
        return {
            "allocated": torch.cuda.max_memory_allocated(self._device) / GB,
            "reserved": torch.cuda.max_memory_reserved(self._device) / GB,
            "besides": (total - free - held) / GB,
        }


def release(device: torch.device) -> None:
    """Give back what nothing uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def require_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise OutOfTime


def within(deadline: float, items: Iterable[Item]) -> Iterator[Item]:
    """Each of them, as long as the next will be done in time if it takes as long as the longest so
    far; then OutOfTime."""
    longest = 0.0
    for item in items:
        require_time(deadline - longest)
        started = time.monotonic()
        yield item
        longest = max(longest, time.monotonic() - started)


def in_a_line(error: BaseException) -> str:
    """What kind of error, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201
