"""The devices of this computer, by the names that users write, and the errors of those that have
too little memory."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = (torch.cuda.OutOfMemoryError, MemoryError)
"""The errors for a GPU or a computer that runs out of memory."""
_MARKS = ("out of memory", "can't allocate memory", "bad_alloc", "alloc_failed")
"""Found in the messages of libraries that raise a plain RuntimeError when out of memory."""
ON_CPU = (
    "There, training a full-size model takes hours instead of minutes, and drawing an image takes "
    "minutes instead of seconds. The toy model is small enough."
)


def find_device(name: str) -> torch.device:
    """The device with this name. If the name is empty, the best one available, with a warning if
    that is the CPU. Raises ValueError for a device that this computer does not have."""
    available = _available()
    if not name:
        if available[0] == "cpu":
            logger.warning("No GPU was found%s, so this runs on the CPU. %s", _why(), ON_CPU)
        return torch.device(available[0])
    if name.lower().removesuffix(":0") in available:
        return torch.device(name.lower())
    why = _why() if "cuda" not in available else ""
    others = "" if available == ["cpu"] else "one of "
    raise ValueError(
        f"device is {name!r}, but this computer has no such device{why}. It must be "
        f"{others}{', '.join(available)}, or left out to use {available[0]}."
    )


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether an error says that the GPU or the computer has run out of memory."""
    is_kind = isinstance(error, OUT_OF_MEMORY)
    return is_kind or any(mark in str(error).lower() for mark in _MARKS)


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to the device. On NVIDIA cards, the CPU does not wait for it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _available() -> list[str]:
    """The names of all devices, the best one first."""
    found = []
    if torch.cuda.is_available():
        found += ["cuda", *(f"cuda:{number}" for number in range(1, torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def _why() -> str:
    """Why PyTorch finds no NVIDIA or AMD card, as far as it is known."""
    backends: Any = torch.backends  # torch does not annotate these functions
    has_support = backends.cuda.is_built() or backends.mps.is_built()
    return "" if has_support else " (this PyTorch was built for the CPU alone)"
