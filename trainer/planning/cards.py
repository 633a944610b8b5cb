"""How much of a card's memory a run can use."""

from __future__ import annotations

import torch

RESERVE = 0.8e9
"""Bytes for what is not counted: CUDA's context, workspaces of cuDNN, gaps between tensors."""
OTHERS = 0.5e9
"""Bytes of a card that the desktop and other programs use."""
SIZES = (4, 6, 8, 10, 12, 16, 24)
"""Usual sizes of cards in GB."""


def usable(card: float) -> int:
    """Bytes that a run can allocate on a card of so many GB."""
    return int(card * 2**30 - RESERVE - OTHERS)


def free(device: torch.device) -> int:
    """Bytes that a run can allocate on a CUDA device now. What this process holds counts as free,
    because ComfyUI unloads its models before a run."""
    available, _ = torch.cuda.mem_get_info(device)
    return int(available + torch.cuda.memory_reserved(device) - RESERVE)


def budget(vram: str, device: torch.device) -> int | None:
    """The bytes that a run may allocate: for "auto" those that are free, otherwise those of a card
    with so many GB. None: no limit is known. Raises ValueError for anything else."""
    if vram == "off" or (vram == "auto" and device.type != "cuda"):
        return None
    if vram == "auto":
        return free(device)
    try:
        card = float(vram.lower().removesuffix("gb"))
    except ValueError:
        card = 0
    if usable(max(card, 0)) <= 0:
        raise ValueError(f"vram must be auto, off or a number of GB such as 8, got {vram!r}.")
    return usable(card)
