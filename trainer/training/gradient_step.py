"""From the losses of a step to new weights: backward pass, clipping and optimizer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .. import precision, weights
from ..families.base import ModelFamily
from ..methods.base import Part
from ..optimization import lr_schedules, optimizers
from ..settings.config import TrainingConfig
from .anchor import Anchor
from .health import Health

ParamGroup = dict[str, Any]


class GradientStep(ABC):
    """Changes the weights of a run's parts, once per step. Steps are counted from 1."""

    is_released = False
    """Whether weights change during the last backward pass of a step already."""

    def __init__(
        self, config: TrainingConfig, parts: Sequence[Part], anchor: Anchor | None
    ) -> None:
        self._config, self._parts, self._anchor = config, parts, anchor

    @abstractmethod
    def groups(self, part: Part) -> list[ParamGroup]:
        """The optimizers' parameter groups of a part."""

    def set_learning_rates(self, step: int) -> dict[str, float]:
        """Set and return the learning rate of each part. Freezes parts past their stop step."""
        factor = lr_schedules.multiplier(self._config.optimizer, step - 1, self._config.steps)
        rates = {}
        for part in self._parts:
            is_stopped = part.stop_step is not None and step > part.stop_step
            rates[part.name] = 0.0 if is_stopped else part.learning_rate * factor
            for group in self.groups(part):
                group["lr"] = rates[part.name]
            if is_stopped:
                for parameter in part.parameters:
                    parameter.requires_grad_(False)
        return rates

    @abstractmethod
    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradients of a loss to those of the step. `is_last`: there are no more losses."""

    @abstractmethod
    def clip_gradients(self) -> Tensor:
        """Scale the gradients down to `max_grad_norm`, and return their norm before that []."""

    @abstractmethod
    def update_weights(self, step: int) -> bool:
        """Run the optimizer, clear the gradients and pull the weights back. Returns False if fp16
        left the weights unchanged because the gradients overflowed."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The optimizer's state, for `load_state`."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state()` of a run with the same settings."""


class GatheredStep(GradientStep):
    """Gathers the gradients of all weights, then updates them with one optimizer. Has the gradient
    scaler that fp16 needs."""

    def __init__(
        self,
        config: TrainingConfig,
        model: ModelFamily,
        parts: Sequence[Part],
        health: Health,
        anchor: Anchor | None = None,
    ) -> None:
        super().__init__(config, parts, anchor)
        self._health = health
        self._parameters = [p for part in parts for p in part.parameters]
        self.optimizer = optimizers.build(
            [group_of(part, part.parameters) for part in parts],
            config.optimizer,
            exact=model.embeddings(),
        )
        self.scaler = precision.grad_scaler(config.precision, model.device)

    def groups(self, part: Part) -> list[ParamGroup]:
        return [self.optimizer.param_groups[self._parts.index(part)]]

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def clip_gradients(self) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        limit = self._config.optimizer.max_grad_norm or math.inf
        norm: Any = torch.nn.utils.clip_grad_norm_(self._parameters, limit)
        if weights.is_split(norm):
            norm = norm.full_tensor()  # of the gradients of all processes
        return cast(Tensor, norm)

    def update_weights(self, step: int) -> bool:
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        was_skipped = self.scaler.get_scale() < scale  # only an overflow lowers the scale
        self._health.check_scale(self.scaler.get_scale(), step, was_skipped=was_skipped)
        if self._anchor and not was_skipped:
            for parameter in self._parameters:
                self._anchor.pull(parameter, parameter.data, step)
        return not was_skipped

    def state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for parameter in self._parameters:
            _lay_out_like(parameter, self.optimizer.state.get(parameter, {}))


def group_of(part: Part, parameters: Sequence[Tensor]) -> ParamGroup:
    """An optimizer's parameter group for these parameters of a part."""
    options: dict[str, Any] = {} if part.decays else {"weight_decay": 0.0}
    if part.directional:
        options["directional"] = True
    return {"params": parameters, "lr": part.learning_rate, **options}


def _lay_out_like(parameter: Tensor, states: dict[str, Any]) -> None:
    """Give the states of a parameter its memory format: fused kernels read both in the order of
    memory, and channels_last may have been switched since the state was saved."""
    for name, value in states.items():
        if not isinstance(value, Tensor) or value.shape != parameter.shape:
            continue
        if value.stride() != parameter.stride() and value.dtype == parameter.dtype:
            states[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)
