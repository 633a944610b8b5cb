"""The optimizers a user picks from: names to builders. Learning-rate schedules live in
`lr_schedules.py`."""

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
"""Parameters whose states are kept in fp32."""


def _adamw(groups: ParamGroups, config: OptimizerConfig, exact: Exact) -> Optimizer:
    # Fused kernels exist for every device we run on, but need all parameters on one of them.
    fused = groups[0]["params"][0].device.type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=fused)


def _adamw_8bit(groups: ParamGroups, config: OptimizerConfig, exact: Exact) -> Optimizer:
    bitsandbytes = _load(config.name)
    optimizer: Any = bitsandbytes.optim.AdamW8bit(groups, weight_decay=config.weight_decay)
    quantized, known = optimizer.get_config, set(map(id, exact))

    # bitsandbytes keeps exceptions in a registry of the whole process, by the address of the
    # weight: another run's weight could take over the address.
    def get_config(group_index: int, index: int, group: dict[str, Any]) -> dict[str, Any]:
        is_exact = id(group["params"][index]) in known
        return quantized(group_index, index, group) | ({"optim_bits": 32} if is_exact else {})

    optimizer.get_config = get_config
    return cast(Optimizer, optimizer)


def _adafactor(groups: ParamGroups, config: OptimizerConfig, exact: Exact) -> Optimizer:
    # Unscaled, so that a learning rate means what it means for AdamW.
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
"""From a weight's shape, and whether it is one of the exact ones, to bytes."""


def _per_weight(num_bytes: int) -> StateBytes:
    return lambda shape, is_exact: num_bytes * math.prod(shape)


def _adamw_8bit_bytes(shape: Sequence[int], is_exact: bool) -> int:
    """Two states of a byte, and two fp32 scales for each block of 256; both states in fp32 for a
    small or an exact weight."""
    size = math.prod(shape)
    return 8 * size if is_exact or size < 4096 else 2 * size + 8 * math.ceil(size / 256)


def _adafactor_bytes(shape: Sequence[int], is_exact: bool) -> int:
    """The momentum in bf16 and, in fp32, the second moments: factored over the last two dimensions
    of a weight that has them."""
    size = math.prod(shape)
    factored = size // shape[-1] + size // shape[-2] if len(shape) > 1 else size
    return 2 * size + 4 * factored


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the optimizers to choose from."""

    build: Callable[[ParamGroups, OptimizerConfig, Exact], Optimizer]
    state_bytes: StateBytes
    """What it remembers of a weight, in memory and in a run's state."""
    bytes_per_weight: int
    """The same in the mean over Stable Diffusion 1.5's U-Net."""
    package: str = ""
    """What it needs beside torch."""
    has_one_rate: bool = False
    """Trains all parts at the learning rate of the first."""
    undoes_channels_last: bool = False
    """Its first step stores the weights channels first again."""


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
"""By the name a user picks."""


def build(groups: ParamGroups, config: OptimizerConfig, exact: Exact = ()) -> Optimizer:
    """The chosen optimizer over groups of `params`, each with its own `lr`. It keeps what it
    remembers of the `exact` parameters in fp32, whatever it does with others."""
    return OPTIMIZERS[config.name].build(groups, config, exact)


def check(config: OptimizerConfig) -> None:
    """Refuse a name that is not in the table, and an optimizer whose package is missing."""
    if config.name not in OPTIMIZERS:
        raise ValueError(
            f"optimizer.name must be one of {', '.join(OPTIMIZERS)}, got {config.name!r}."
        )
    if OPTIMIZERS[config.name].package:
        _load(config.name)


def require_channels_last(config: TrainingConfig) -> None:
    """Refuse channels_last where the optimizer would undo it in the weights that it trains."""
    name = config.optimizer.name
    if config.channels_last and OPTIMIZERS[name].undoes_channels_last:
        raise ValueError(
            f"channels_last is on, and optimizer.name is {name}, whose first step would undo it. "
            "Switch channels_last off, or choose another optimizer."
        )


def require_one_rate(config: TrainingConfig, rate: float | None, option: str) -> None:
    """Refuse a part's own learning rate, set by `option`, where the optimizer would ignore it."""
    optimizer = config.optimizer
    if rate in (None, optimizer.learning_rate) or not OPTIMIZERS[optimizer.name].has_one_rate:
        return
    raise ValueError(
        f"{option} is {rate:g}, but optimizer.name is {optimizer.name}, which trains all parts at "
        f"one learning rate (optimizer.learning_rate, now {optimizer.learning_rate:g}). Leave "
        f"{option} out, or choose another optimizer."
    )


def state_bytes(name: str, parameters: Iterable[Tensor], exact: Exact = ()) -> int:
    """What the optimizer of that name remembers of these parameters, in bytes."""
    known = set(map(id, exact))
    return sum(OPTIMIZERS[name].state_bytes(p.shape, id(p) in known) for p in parameters)


def _load(name: str) -> Any:
    """The package of an optimizer. ValueError if it is missing."""
    package = OPTIMIZERS[name].package
    return packages.load(package, needed_by=f"The optimizer {name}", instead="AdamW")
