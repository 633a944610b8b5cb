"""Pairs of a base and a trained checkpoint for the tests: changes of the tensors in a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

GENERATIONS = ["1", "2", "XL"]
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = ("cond_stage_model.", "conditioner.embedders.")
CPU = torch.device("cpu")
Change = Callable[[str, Tensor], Tensor]
"""What a tensor becomes, by its name in the file."""


def is_text(key: str) -> bool:
    return key.startswith(TEXT)


def is_layer(key: str, shape: tuple[int, ...]) -> bool:
    """Whether a LoRA can hold a change of this tensor of a file, by its name and shape alone."""
    if len(shape) < 2 or not key.endswith("weight"):
        return False
    if is_text(key):
        return bool(re.search(r"(resblocks|encoder\.layers)\.", key))
    return key.startswith(UNET)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def changed(base: Path, path: Path, change: Change, **metadata: str) -> Path:
    """A copy of a checkpoint with changed tensors, in their number formats."""
    tensors = {key: change(key, tensor).to(tensor.dtype) for key, tensor in load_file(base).items()}
    save_file(tensors, path, metadata={**metadata_of(base), **metadata})
    return path


def converted(base: Path, path: Path, dtype: torch.dtype) -> Path:
    """A copy in another number format."""
    tensors = load_file(base)
    save_file(
        {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()},
        path, metadata=metadata_of(base),
    )  # fmt: skip
    return path


def bits(tensor: Tensor) -> Tensor:
    """Its bytes, to compare it exactly."""
    return tensor.flatten().view(torch.uint8)


def low_rank(shape: tuple[int, ...], rank: int, key: str, size: float = 0.01) -> Tensor:
    """A random matrix of this rank, the same for the same key, with entries around `size`."""
    generator = torch.Generator().manual_seed(sum(key.encode()))
    columns = torch.Size(shape[1:]).numel()
    one = torch.randn(shape[0], rank, generator=generator, dtype=torch.float64)
    other = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
    return (size * (one @ other) / rank**0.5).view(shape)


def add_low_rank(rank: int, size: float = 0.01) -> Change:
    """Adds it to every layer that a LoRA can hold: to each third of a fused one by itself."""

    def change(key: str, tensor: Tensor) -> Tensor:
        if not is_layer(key, tuple(tensor.shape)):
            return tensor
        parts = tensor.double().chunk(3) if "in_proj_weight" in key else [tensor.double()]
        added = [
            part + low_rank(tuple(part.shape), rank, f"{key}{number}", size)
            for number, part in enumerate(parts)
        ]
        return torch.cat(added)

    return change


def differences(base: Path, trained: Path) -> Mapping[str, Tensor]:
    """Trained minus base of the tensors that differ, in float64."""
    before, after = load_file(base), load_file(trained)
    found = {key: after[key].double() - before[key].double() for key in before
             if before[key].is_floating_point()}  # fmt: skip
    return {key: tensor for key, tensor in found.items() if tensor.any()}
