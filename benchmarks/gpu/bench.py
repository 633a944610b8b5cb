"""What every stage gets: the device, a model with random weights, and folders."""

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
"""GPU memory is specified in units of 2^30 bytes."""


class OutOfTime(Exception):
    """The stage has used up its time. Earlier measurements are kept."""


class LeftOut(Exception):
    """The stage cannot run here. The message gives the reason."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One run of the program."""

    device: torch.device
    shape: Shape
    folder: Path
    """For temporary files."""
    reference: Path | None = None
    """diffusers' train_dreambooth.py."""
    reference_model: Path | None = None
    """A model folder for it, in diffusers' layout. None: one with random weights is created."""

    def networks(self) -> Networks:
        return build(self.shape, self.device)

    @cached_property
    def checkpoint(self) -> Path:
        """One file with random weights, written at the first use."""
        path = self.folder / "random.safetensors"
        write_checkpoint(self.networks(), path, self.shape.resolution)
        return path

    @cached_property
    def photos(self) -> Path:
        """A folder of images of noise."""
        return self._noise_images("photos", seed=0)

    @cached_property
    def class_images(self) -> Path:
        return self._noise_images("class", seed=1)

    def _noise_images(self, name: str, *, seed: int) -> Path:
        folder, side = self.folder / name, self.shape.resolution
        folder.mkdir()
        rng = np.random.default_rng(seed)
        for number in range(NUM_PHOTOS):
            pixels = rng.integers(0, 256, size=(side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        return folder


class Memory:
    """Measures the peak memory on a device from now on, in GB. None on devices that do not count
    it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        release(device)
        memory.reset_peak(device)

    def peaks(self) -> dict[str, float | None]:
        """Allocated: memory of tensors. Reserved: memory that PyTorch holds for them. Other: memory
        of CUDA itself and of other programs."""
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
    """Free unused memory."""
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
    """Yield items as long as the next one will finish in time if it takes as long as the longest so
    far. Then raise OutOfTime."""
    longest = 0.0
    for item in items:
        require_time(deadline - longest)
        started = time.monotonic()
        yield item
        longest = max(longest, time.monotonic() - started)


def in_a_line(error: BaseException) -> str:
    """The type of the error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201
