"""From the losses of a step's batches to new weights: backward pass, clipping and optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import precision
from ..families.base import ModelFamily
from ..methods.base import Part
from ..optimization import lr_schedules, optimizers
from ..settings.config import TrainingConfig
from .health import Health


class GradientStep:
    """The optimizer, and the gradient scaler that fp16 needs. Steps are counted from 1."""

    def __init__(
        self, config: TrainingConfig, model: ModelFamily, parts: Sequence[Part], health: Health
    ) -> None:
        self._config, self._parts, self._health = config, parts, health
        self._parameters = [p for part in parts for p in part.parameters]
        self.optimizer = optimizers.build(
            list(map(_group, parts)), config.optimizer, exact=model.embeddings()
        )
        self.scaler = precision.grad_scaler(config.precision, model.device)

    def set_learning_rates(self, step: int) -> dict[str, float]:
        """Set and return the learning rate of each part. Freezes parts past their stop step."""
        factor = lr_schedules.multiplier(self._config.optimizer, step - 1, self._config.steps)
        rates = {}
        for part, group in zip(self._parts, self.optimizer.param_groups, strict=True):
            is_stopped = part.stop_step is not None and step > part.stop_step
            rates[part.name] = group["lr"] = 0.0 if is_stopped else part.learning_rate * factor
            if is_stopped:
                for parameter in part.parameters:
                    parameter.requires_grad_(False)
        return rates

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the step."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def clip_gradients(self, step: int) -> float:
        """Scale the gradients down to `max_grad_norm`, and return their norm before that. Raises
        FloatingPointError if it is NaN or infinite, except in fp16, which skips such a step."""
        self.scaler.unscale_(self.optimizer)
        limit = self._config.optimizer.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit).item()
        if not self.scaler.is_enabled():
            self._health.require_finite(norm, "gradient", step)
        return norm

    def update_weights(self, step: int) -> bool:
        """Run the optimizer and clear the gradients. Returns False if fp16 left the weights
        unchanged because the gradients overflowed."""
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        was_skipped = self.scaler.get_scale() < scale  # only an overflow lowers the scale
        self._health.check_scale(self.scaler.get_scale(), step, was_skipped=was_skipped)
        return not was_skipped

    def state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def _group(part: Part) -> dict[str, Any]:
    """The optimizer's parameter group for a part."""
    decay = {} if part.decays else {"weight_decay": 0.0}
    return {"params": part.parameters, "lr": part.learning_rate, **decay}
