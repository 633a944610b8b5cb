"""The optimizers that users choose from, by name. To add one, add an entry to `OPTIMIZERS`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import packages
from ..settings.config import OptimizerConfig, TrainingConfig
from .riemannian import RiemannianSGD

ParamGroups = list[dict[str, Any]]
Exact = Sequence[Tensor]
"""Parameters whose optimizer state is kept in fp32."""


def _adamw(groups: ParamGroups, config: OptimizerConfig, exact: Exact) -> Optimizer:
    # Fused kernels need all parameters on the same device.
    fused = groups[0]["params"][0].device.type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=fused)


def _adamw_8bit(groups: ParamGroups, config: OptimizerConfig, exact: Exact) -> Optimizer:
    optimizer: Any = _adamw_8bit_class()(groups, weight_decay=config.weight_decay)
    # bitsandbytes' own way to exempt a parameter is a process-wide registry keyed by id(), which
    # a later run's parameter could reuse.
    optimizer.exact = set(map(id, exact))
    return cast(Optimizer, optimizer)


@cache
def _adamw_8bit_class() -> type:
    base: Any = _load("AdamW8bit").optim.AdamW8bit

    class AdamW8bit(base):  # type: ignore[misc]
        """With fp32 states for `exact` parameters. bitsandbytes' own `step` waits for the GPU after
        each parameter, and leaves parameters contiguous."""

        exact: set[int]
        initialized: bool

        def get_config(self, group_index: int, index: int, group: dict[str, Any]) -> dict[str, Any]:
            is_exact = id(group["params"][index]) in self.exact
            settings: dict[str, Any] = super().get_config(group_index, index, group)
            return settings | ({"optim_bits": 32} if is_exact else {})

        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            if not self.initialized:
                self.check_overrides()
                self.to_gpu()  # the states of a resumed run
                self.initialized = True
            for group_index, group in enumerate(self.param_groups):
                for index, parameter in enumerate(group["params"]):
                    if parameter.grad is not None:
                        self._update(group, parameter, group_index, index)

        def _update(self, group: Any, parameter: Tensor, group_index: int, index: int) -> None:
            data = parameter.data
            parameter.data = data.contiguous()
            if not self.state[parameter]:
                self.init_state(group, parameter, group_index, index)
            self.update_step(group, parameter, group_index, index)
            if not data.is_contiguous():
                parameter.data = data.copy_(parameter.data)

    return AdamW8bit


def _adafactor(
    groups: ParamGroups, config: OptimizerConfig, exact: Exact, *, momentum: float | None = 0.9
) -> Optimizer:
    # Without scaling, the learning rate means the same as for AdamW.
    optimizer: Optimizer = _load(config.name).AdaFactor(
        groups, weight_decay=config.weight_decay, betas=(momentum, 0.999), scale_parameter=False,
        relative_step=False,
    )  # fmt: skip
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


def _matrix_bytes(shape: Sequence[int], is_exact: bool) -> int:
    """Second moments in fp32, for each row and each column of the parameter as a matrix."""
    size = math.prod(shape)
    return 4 * (shape[0] + size // shape[0] if len(shape) > 1 else size)


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
    is_per_weight: bool = True
    """The update of a weight depends on nothing but that weight and its gradients, so that weights
    can be updated one after the other."""
    is_elementwise: bool = False
    """The update of a number depends on nothing but that number and its gradients, so that parts of
    a weight can be updated by themselves."""
    on_matrices: bool = False
    """Works on each weight as a matrix [outputs, everything else], whatever its shape."""


OPTIMIZERS: dict[str, Choice] = {
    "AdamW": Choice(_adamw, _per_weight(8), 8, is_elementwise=True),
    "AdamW8bit": Choice(_adamw_8bit, _adamw_8bit_bytes, 2, package="bitsandbytes"),
    "Adafactor": Choice(_adafactor, _adafactor_bytes, 4, package="pytorch-optimizer"),
    "Prodigy": Choice(
        _prodigy, _per_weight(16), 16, package="pytorch-optimizer", has_one_rate=True,
        is_per_weight=False,
    ),
    "Lion": Choice(
        _lion, _per_weight(4), 4, package="pytorch-optimizer", is_elementwise=True
    ),
    "Adafactor without momentum": Choice(
        partial(_adafactor, momentum=None), _matrix_bytes, 0, package="pytorch-optimizer",
        on_matrices=True,
    ),
}  # fmt: skip
"""By the name that users choose."""


def build(groups: ParamGroups, config: OptimizerConfig, exact: Exact = ()) -> Optimizer:
    """Create the chosen optimizer, or the one of groups that are `directional`. Each group has its
    `params` and their `lr`. The state of `exact` parameters is kept in fp32, even by an 8-bit
    optimizer."""
    if all(group.get("directional") for group in groups):
        return RiemannianSGD(groups)
    return OPTIMIZERS[config.name].build(groups, config, exact)


def check(config: OptimizerConfig) -> None:
    """Raise ValueError for an unknown optimizer, or one whose package cannot be imported."""
    if config.name not in OPTIMIZERS:
        raise ValueError(
            f"optimizer.name must be one of {', '.join(OPTIMIZERS)}, got {config.name!r}."
        )
    if OPTIMIZERS[config.name].package:
        _load(config.name)


def updates_per_weight(config: TrainingConfig) -> bool:
    """Whether large weights are updated one by one instead of all together."""
    return bool(_per_weight_settings(config))


def check_per_weight(config: TrainingConfig) -> None:
    """Raise ValueError for weights, gradient_release or offload that cannot be combined with other
    settings."""
    name = config.optimizer.name
    for setting, instead in _per_weight_settings(config).items():
        if not OPTIMIZERS[name].is_per_weight:
            raise ValueError(
                f"{setting}, but optimizer.name is {name}, which needs the gradients of all "
                f"weights at once. Choose another optimizer, or {instead}."
            )
        if config.precision == "fp16":
            raise ValueError(
                f"{setting}, but precision is fp16, which skips steps whose gradients overflow, "
                "when weights have changed already. Set precision to bf16 or fp32, "
                f"or {instead}."
            )
    if config.weights != "fp32" and config.precision != "bf16":
        raise ValueError(
            f"weights is {config.weights}, with which the model computes in bf16, but precision is "
            f"{config.precision}. Set precision to bf16, or weights to fp32."
        )
    if config.offload and not config.gradient_release:
        raise ValueError(
            "offload is on, which needs gradient_release. Switch gradient_release on, or offload "
            "off."
        )


def _per_weight_settings(config: TrainingConfig) -> dict[str, str]:
    """The settings for which weights are updated one by one, each with how to avoid it."""
    name = config.optimizer.name
    return {
        setting: instead
        for setting, instead, is_used in (
            ("gradient_release is on", "switch gradient_release off", config.gradient_release),
            (f"weights is {config.weights}", "set weights to fp32", config.weights != "fp32"),
            (f"optimizer.name is {name}", "choose another optimizer", OPTIMIZERS[name].on_matrices),
        )
        if is_used
    }


def check_sharded(config: TrainingConfig) -> None:
    """Raise ValueError for settings that cannot be combined with sharded."""
    if not config.sharded:
        return
    name = config.optimizer.name
    for setting, instead, is_used in (
        ("gradient_release is on", "Switch gradient_release off", config.gradient_release),
        (f"weights is {config.weights}", "Set weights to fp32", config.weights != "fp32"),
        (f"optimizer.name is {name}", "Choose AdamW or Lion", not OPTIMIZERS[name].is_elementwise),
        ("precision is fp16", "Set precision to bf16 or fp32", config.precision == "fp16"),
        ("channels_last is on", "Switch channels_last off", config.channels_last),
        ("compile is on", "Switch compile off", config.compile),
    ):
        if is_used:
            raise ValueError(
                f"sharded is on, which splits weights among processes, but {setting}, which needs "
                f"whole ones. {instead}, or sharded off."
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
