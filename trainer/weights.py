"""The number formats in which trained weights are stored.

A step changes a weight by about 1e-6, which bf16 cannot hold: rounded to it, 99 % of the change is
lost. In "24 bit" a weight is a bf16 number, with which the network computes, and the next 8 bits,
its `rest`, with which the optimizer computes. In "bf16" there is no rest, and a changed weight is
rounded up or down at random, so that it is right on average. Both leave small weights, such as
biases and norms, in fp32.

A stored weight is a bf16 tensor, here with its rest as an attribute. fp32 tensors are their own
value."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

MIN_NUMBERS = 4096
"""Weights with fewer numbers, or a single dimension, stay in fp32. They are 0.1 % of all."""
_REST = "_rest"
AnyTensor = TypeVar("AnyTensor", bound=Tensor)


def is_large(weight: Tensor) -> bool:
    """Whether a weight is large enough to be stored in another format than fp32."""
    return weight.ndim > 1 and weight.numel() >= MIN_NUMBERS


def is_stored(weight: Tensor) -> bool:
    """Whether a weight is in another format than fp32."""
    return weight.dtype == torch.bfloat16


def is_split(weight: Tensor) -> bool:
    """Whether this process has only a part of a weight."""
    return hasattr(weight, "full_tensor")  # a DTensor, which not every build of torch has


def own_part(weight: Tensor) -> Tensor:
    """What this process has of a weight, sharing memory; all of it unless it is split."""
    return weight.to_local() if is_split(weight) else weight  # type: ignore


def part_like(weight: Tensor, whole: Tensor) -> Tensor:
    """The part of `whole` that this process has of a weight of the same shape."""
    if not is_split(weight):
        return whole
    mesh: Any = weight.device_mesh  # type: ignore[attr-defined]
    return part_of(whole, mesh.get_local_rank(), mesh.size())


def part_of(whole: Tensor, rank: int, size: int) -> Tensor:
    """The part of process `rank` of `size` processes: rows, which may be none."""
    parts = whole.chunk(size)
    return parts[rank] if rank < len(parts) else whole[:0]


def rest_of(weight: Tensor) -> Tensor | None:
    """The rest [int8] of a weight in 24 bits, on any device; None in other formats."""
    rest: Tensor | None = getattr(weight, _REST, None)
    return rest


def set_rest(weight: Tensor, rest: Tensor | None) -> None:
    """Replace the rest of a weight."""
    setattr(weight, _REST, rest)


def num_bytes(weight: Tensor) -> int:
    """The memory that a weight takes, with its rest."""
    rest = rest_of(weight)
    return weight.nbytes + (0 if rest is None else rest.nbytes)


@torch.no_grad()
def store(parameter: nn.Parameter, format: str) -> None:
    """Convert a parameter to a format in place, rounding to the nearest number. All numbers of fp16
    and bf16 files are exact in 24 bits."""
    values = parameter.data.to(torch.float32)
    if format == "fp32" or not is_large(values):
        parameter.data = values
        return
    parameter.data = torch.empty_like(values, dtype=torch.bfloat16)
    rest = torch.empty_like(values, dtype=torch.int8) if format == "24 bit" else None
    set_rest(parameter, rest)
    _write(parameter, values.clone(), generator=None)


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """A tensor of a file that is made of several weights, or that is a transposed weight."""

    parts: tuple[Tensor, ...]
    """Its rows, in order."""
    is_transposed: bool = False

    def numel(self) -> int:
        return sum(part.numel() for part in self.parts)


FileTensor = Tensor | Joined
"""What a tensor of a file is made of: a weight in the shape that the file has, or `Joined`."""


@torch.no_grad()
def value(weight: FileTensor) -> Tensor:
    """The values of a weight in fp32, with its rest. Those of an fp32 weight are not copied."""
    if isinstance(weight, Joined):
        values = [value(part) for part in weight.parts]
        joined = torch.cat(values) if len(values) > 1 else values[0]
        return joined.t() if weight.is_transposed else joined
    rest = rest_of(weight)
    if rest is None:
        return weight.detach().to(torch.float32)
    upper = weight.detach().view(torch.int16).to(torch.int32) << 16
    return upper.add_(rest.to(weight.device, torch.int32), alpha=256).view(torch.float32)


@torch.no_grad()
def write(weight: Tensor, values: Tensor, generator: torch.Generator) -> None:
    """Store new values [fp32] in a weight. What its format cannot hold is rounded up or down at
    random, with the probability that makes the average right. Overwrites `values`."""
    if is_stored(weight):
        _write(weight, values, generator)
    else:
        weight.copy_(values)


def reseed(generator: torch.Generator, *key: object) -> torch.Generator:
    """Let a key, such as seed, step and number of the weight, decide how `write` rounds, so that
    the generator's state need not be saved."""
    return generator.manual_seed(random.Random(" ".join(map(str, key))).getrandbits(63))


@torch.no_grad()
def restore(weight: Tensor, saved: Tensor, rest: Tensor | None) -> None:
    """Copy a saved weight and its rest, bit for bit. No rest is a rest of zeros."""
    weight.copy_(saved)
    own = rest_of(weight)
    if own is not None:
        own.copy_(torch.zeros_like(own) if rest is None else rest)


def restore_all(
    weights: Sequence[Tensor], saved: Sequence[Tensor], rests: Sequence[Tensor | None] | None
) -> None:
    """`restore` for each weight. States of older versions have no rests."""
    rests = [None] * len(weights) if rests is None else rests
    for weight, values, rest in zip(weights, saved, rests, strict=True):
        restore(weight, values, rest)


def view(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The weight in another shape, with its rest, sharing memory."""
    viewed = weight.detach().view(shape)
    rest = rest_of(weight)
    if rest is not None:
        set_rest(viewed, rest.view(shape))
    return viewed


def copy(weight: Tensor) -> Tensor:
    """An independent copy of a weight's value: in 24 bits, or fp32 if the weight is in fp32."""
    copied = weight.detach().clone()
    if is_stored(weight):
        rest = rest_of(weight)
        zeros = torch.zeros_like(copied, dtype=torch.int8)
        set_rest(copied, zeros if rest is None else rest.clone())
    return copied


def swap(weight: Tensor, other: Tensor) -> None:
    """Exchange the values of two weights without copying them, unless they are split."""
    if is_split(weight):  # others read them from the memory where they are
        kept = weight.detach().clone()
        weight.detach().copy_(other)
        other.detach().copy_(kept)
        return
    rest, others_rest = rest_of(weight), rest_of(other)
    weight.data, other.data = other.data, weight.data
    set_rest(weight, others_rest)
    set_rest(other, rest)


def move(module: nn.Module, device: torch.device, rests: torch.device | None = None) -> None:
    """Move a module to a device, and the rests of its weights to the same or another device."""
    module.to(device)
    for parameter in module.parameters():
        rest = rest_of(parameter)
        if rest is not None:
            set_rest(parameter, rest.to(rests or device))


def _write(weight: Tensor, values: Tensor, generator: torch.Generator | None) -> None:
    """Works on the bits of the numbers: adding to them raises the magnitude of a number by that
    many units in its last place."""
    # In place where possible: temporary tensors of the largest weight count at the peak of memory.
    rest = rest_of(weight)
    num_dropped = 16 if rest is None else 8
    bits = values.view(torch.int32)
    bits += 1 << (num_dropped - 1) if generator is None else _noise(weight, generator)
    bits &= -1 << num_dropped
    upper = bits.clone() if rest is None else bits + (1 << 15)
    upper >>= 16  # the nearest bf16 number
    if rest is not None:
        bits >>= 8
        rest.copy_(bits.sub_(upper, alpha=256))
    weight.copy_(upper.to(torch.int16).view(torch.bfloat16))


def _noise(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Random integers of the shape of a weight, in the range of the bits that its format drops. Cut
    from 64-bit numbers, because fewer draws are faster."""
    dtype = torch.int16 if rest_of(weight) is None else torch.int8
    num_draws = -(-weight.numel() * dtype.itemsize // 8)
    draws = torch.empty(num_draws, dtype=torch.int64, device=weight.device)
    draws.random_(-(2**63), None, generator=generator)
    numbers = draws.view(dtype)[: weight.numel()].view(weight.shape).to(torch.int32)
    numbers &= (1 << (8 * dtype.itemsize)) - 1
    return numbers
