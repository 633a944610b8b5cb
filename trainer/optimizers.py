"""The optimizers a user picks from: names to builders. Learning-rate schedules live in
`lr_schedules.py`."""

from __future__ import annotations

from collections.abc import Callable
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


OPTIMIZERS: dict[str, Callable[[ParamGroups, OptimizerConfig], Optimizer]] = {
    "AdamW": _adamw,
    "AdamW8bit": _adamw_8bit,
    "Adafactor": _adafactor,
    "Prodigy": _prodigy,
    "Lion": _lion,
}
"""AdamW keeps 8 bytes of state per trained weight, AdamW8bit 2, Lion 4, Adafactor almost none,
Prodigy 16."""


def build(groups: ParamGroups, config: OptimizerConfig) -> Optimizer:
    """The chosen optimizer over groups of `params`, each with its own `lr`."""
    check(config)
    return OPTIMIZERS[config.name](groups, config)


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
