"""The optimizers that users choose from, by name. To add one, add an entry to `OPTIMIZERS`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import packages
from ..settings.config import OptimizerConfig, TrainingConfig

ParamGroups = list[dict[str, Any]]
Exact = Sequence[Tensor]
"""Parameters whose optimizer state is kept in fp32."""


def _adamw(groups: ParamGroups, config: OptimizerConfig, exact: Exact) -> Optimizer:
    # Fused kernels need all parameters on the same device.
    fused = groups[0]["params"][0].device.type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=fused)


def _adamw_8bit(groups: ParamGroups, config: OptimizerConfig, exact: Exact) -> Optimizer:
    bitsandbytes = _load(config.name)
    optimizer: Any = bitsandbytes.optim.AdamW8bit(groups, weight_decay=config.weight_decay)
    quantized, known = optimizer.get_config, set(map(id, exact))

    # bitsandbytes' own way to exempt a parameter is a process-wide registry keyed by id(), which
    # a later run's parameter could reuse.
    def get_config(group_index: int, index: int, group: dict[str, Any]) -> dict[str, Any]:
        is_exact = id(group["params"][index]) in known
        return quantized(group_index, index, group) | ({"optim_bits": 32} if is_exact else {})

    optimizer.get_config = get_config
    return cast(Optimizer, optimizer)


def _adafactor(groups: ParamGroups, config: OptimizerConfig, exact: Exact) -> Optimizer:
    # Without scaling, the learning rate means the same as for AdamW.
    optimizer: Optimizer = _load(config.name).AdaFactor(
        groups, weight_decay=config.weight_decay, scale_parameter=False, relative_step=False
    )
    return optimizer


def _prodigy(groups: ParamGroups, config: OptimizerConfig, exact: Exact) -> Optimizer:
    optimizer: Optimizer = _load(config.name).Prodigy(
        groups, weight_decay=config.weight_decay, bias_correction=True, safeguard_warmup=True
    )
    return optimizer


def _lion(groups: ParamGroups, config: OptimizerConfig, exact: Exact) -> Optimizer:
    optimizer: Optimizer = _load(config.name).Lion(groups, weight_decay=config.weight_decay)
    return optimizer


StateBytes = Callable[[Sequence[int], bool], int]
"""Maps a parameter's shape, and whether it is exact, to bytes of optimizer state."""


def _per_weight(num_bytes: int) -> StateBytes:
    return lambda shape, is_exact: num_bytes * math.prod(shape)


def _adamw_8bit_bytes(shape: Sequence[int], is_exact: bool) -> int:
    """Two 1-byte states and two fp32 scales per block of 256 values. For small or exact parameters,
    two fp32 states."""
    size = math.prod(shape)
    return 8 * size if is_exact or size < 4096 else 2 * size + 8 * math.ceil(size / 256)


def _adafactor_bytes(shape: Sequence[int], is_exact: bool) -> int:
    """Momentum in bf16 and second moments in fp32, factored over the last two dimensions of
    parameters with at least two."""
    size = math.prod(shape)
    factored = size // shape[-1] + size // shape[-2] if len(shape) > 1 else size
    return 2 * size + 4 * factored


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the optimizers that users choose from."""

    build: Callable[[ParamGroups, OptimizerConfig, Exact], Optimizer]
    state_bytes: StateBytes
    """Size of its state for a parameter, in memory and in a saved training state."""
    bytes_per_weight: int
    """Average state size per weight of Stable Diffusion 1.5's U-Net, rounded."""
    package: str = ""
    """The package it needs besides torch; "" for none."""
    has_one_rate: bool = False
    """Uses the learning rate of the first parameter group for all groups."""
    undoes_channels_last: bool = False
    """Its first step changes the weights back from channels_last."""


OPTIMIZERS: dict[str, Choice] = {
    "AdamW": Choice(_adamw, _per_weight(8), 8),
    "AdamW8bit": Choice(
        _adamw_8bit, _adamw_8bit_bytes, 2, package="bitsandbytes", undoes_channels_last=True
    ),
    "Adafactor": Choice(_adafactor, _adafactor_bytes, 4, package="pytorch-optimizer"),
    "Prodigy": Choice(
        _prodigy, _per_weight(16), 16, package="pytorch-optimizer", has_one_rate=True
    ),
    "Lion": Choice(_lion, _per_weight(4), 4, package="pytorch-optimizer"),
}
"""By the name that users choose."""


def build(groups: ParamGroups, config: OptimizerConfig, exact: Exact = ()) -> Optimizer:
    """Create the chosen optimizer. Each group has its `params` and their `lr`. The state of `exact`
    parameters is kept in fp32, even by an 8-bit optimizer."""
    return OPTIMIZERS[config.name].build(groups, config, exact)


def check(config: OptimizerConfig) -> None:
    """Raise ValueError for an unknown optimizer, or one whose package cannot be imported."""
    if config.name not in OPTIMIZERS:
        raise ValueError(
            f"optimizer.name must be one of {', '.join(OPTIMIZERS)}, got {config.name!r}."
        )
    if OPTIMIZERS[config.name].package:
        _load(config.name)


def require_channels_last(config: TrainingConfig) -> None:
    """Raise ValueError if channels_last is on and the optimizer would undo it."""
    name = config.optimizer.name
    if config.channels_last and OPTIMIZERS[name].undoes_channels_last:
        raise ValueError(
            f"channels_last is on, but optimizer.name is {name}, whose first step would undo it. "
            "Switch channels_last off, or choose another optimizer."
        )


def require_one_rate(config: TrainingConfig, rate: float | None, option: str) -> None:
    """Raise ValueError if `option` sets a separate learning rate for one part of the model and the
    optimizer would ignore it. None: not set."""
    optimizer = config.optimizer
    if rate in (None, optimizer.learning_rate) or not OPTIMIZERS[optimizer.name].has_one_rate:
        return
    raise ValueError(
        f"{option} is {rate:g}, but optimizer.name is {optimizer.name}, which trains all parts at "
        f"one learning rate (optimizer.learning_rate, now {optimizer.learning_rate:g}). Leave "
        f"{option} out, or choose another optimizer."
    )


def state_bytes(name: str, parameters: Iterable[Tensor], exact: Exact = ()) -> int:
    """Return the size in bytes of an optimizer's state for these parameters."""
    known = set(map(id, exact))
    return sum(OPTIMIZERS[name].state_bytes(p.shape, id(p) in known) for p in parameters)


def _load(name: str) -> Any:
    """Import the package of an optimizer. Raises ValueError if that fails."""
    package = OPTIMIZERS[name].package
    return packages.load(package, needed_by=f"The optimizer {name}", instead="AdamW")
