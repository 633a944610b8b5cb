"""The optimizers a user picks from: names to builders. Learning-rate schedules live in
`lr_schedules.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from .config import OptimizerConfig

ParamGroups = list[dict[str, Any]]


def _adamw(groups: ParamGroups, config: OptimizerConfig) -> Optimizer:
    # Fused kernels exist for every device we run on, but need all parameters on one of them.
    fused = groups[0]["params"][0].device.type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=fused)


def _adamw_8bit(groups: ParamGroups, config: OptimizerConfig) -> Optimizer:
    bitsandbytes = _import("bitsandbytes", config.name)
    optimizer: Optimizer = bitsandbytes.optim.AdamW8bit(groups, weight_decay=config.weight_decay)
    return optimizer


def _adafactor(groups: ParamGroups, config: OptimizerConfig) -> Optimizer:
    # Unscaled, so that a learning rate means what it means for AdamW.
    optimizer: Optimizer = _import("pytorch_optimizer", config.name).AdaFactor(
        groups, weight_decay=config.weight_decay, scale_parameter=False, relative_step=False
    )
    return optimizer


def _prodigy(groups: ParamGroups, config: OptimizerConfig) -> Optimizer:
    optimizer: Optimizer = _import("pytorch_optimizer", config.name).Prodigy(
        groups, weight_decay=config.weight_decay, bias_correction=True, safeguard_warmup=True
    )
    return optimizer


def _lion(groups: ParamGroups, config: OptimizerConfig) -> Optimizer:
    optimizer: Optimizer = _import("pytorch_optimizer", config.name).Lion(
        groups, weight_decay=config.weight_decay
    )
    return optimizer


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the optimizers to choose from."""

    build: Callable[[ParamGroups, OptimizerConfig], Optimizer]
    bytes_per_weight: int
    """What it remembers of each trained weight, in memory and in a run's state."""


OPTIMIZERS: dict[str, Choice] = {
    "AdamW": Choice(_adamw, 8),
    "AdamW8bit": Choice(_adamw_8bit, 2),
    "Adafactor": Choice(_adafactor, 2),
    "Prodigy": Choice(_prodigy, 16),
    "Lion": Choice(_lion, 4),
}
"""By the name a user picks."""


def build(groups: ParamGroups, config: OptimizerConfig) -> Optimizer:
    """The chosen optimizer over groups of `params`, each with its own `lr`."""
    check(config)
    return OPTIMIZERS[config.name].build(groups, config)


def check(config: OptimizerConfig) -> None:
    """Refuse a name that is not in the table."""
    if config.name not in OPTIMIZERS:
        raise ValueError(
            f"optimizer.name must be one of {', '.join(OPTIMIZERS)}, got {config.name!r}."
        )


def _import(module: str, optimizer: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.replace("_", "-")
        raise ValueError(
            f"optimizer.name is {optimizer}, which needs the package {package}, and it cannot be "
            f"loaded ({error}). Install it with 'pip install {package}', or choose AdamW."
        ) from error
