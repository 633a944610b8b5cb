"""The pull of trained weights back to their values before training, so that the model keeps what it
knew ("Preserve and Personalize", arXiv 2505.19519; the penalty L2-SP of arXiv 1802.01483, decoupled
from the gradient like AdamW's weight decay)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from .. import weights
from ..methods.base import Part, Trainable
from ..optimization import lr_schedules
from ..settings.config import TrainingConfig

INTERVAL = 10
"""Each weight is pulled at every tenth step only, but ten times as far: the result is the same, and
a tenth of the initial weights is read from main memory per step."""


@dataclass(frozen=True, slots=True, eq=False)
class _Origin:
    """Where a weight is pulled to."""

    value: Tensor
    """In main memory, in any number format."""
    progress: Sequence[float]
    """The share of its learning, measured by the learning rate, that is done after 0, 1, ... steps,
    from 0 to 1."""
    offset: int
    """Decides at which steps the weight is pulled."""


class Anchor:
    """Pulls weights to their initial values after a step: p <- p + share (p0 - p). The shares are
    such that what the first step changes is multiplied by exp(-strength) over the run, whatever its
    number of steps, learning rate and schedule."""

    def __init__(self, config: TrainingConfig, trainable: Trainable) -> None:
        """Call it before the first step."""
        self._strength = config.optimizer.anchor
        self._origins: dict[Tensor, _Origin] = {}
        for part in trainable.parts:
            progress = _progress(config, part)
            values = trainable.initial_values(part)
            for parameter, value in zip(part.parameters, values, strict=True):
                if value is not None:
                    value = value.pin_memory() if parameter.device.type == "cuda" else value
                    self._origins[parameter] = _Origin(value, progress, len(self._origins))

    @torch.no_grad()
    def pull(self, parameter: Tensor, values: Tensor, step: int) -> None:
        """Pull the values [fp32] that a parameter has after its update in a step, in place."""
        origin = self._origins.get(parameter)
        if origin and (share := _share(origin, self._strength, step)):
            # First to the device, which converts faster.
            value = weights.part_like(values, origin.value).to(values.device, non_blocking=True)
            weights.own_part(values).lerp_(value.to(values.dtype), share)


def _progress(config: TrainingConfig, part: Part) -> list[float]:
    num_steps = min(config.steps, part.stop_step or config.steps)
    rates = (lr_schedules.multiplier(config.optimizer, s, config.steps) for s in range(num_steps))
    done = list(accumulate(rates, initial=0.0))
    return [each / done[-1] for each in done]


def _share(origin: _Origin, strength: float, step: int) -> float:
    """How far a weight is pulled at a step; at the last one, what is left."""
    last = len(origin.progress) - 1
    if step > last or (step != last and (step + origin.offset) % INTERVAL):
        return 0.0
    before = max(step - 1 - (step - 1 + origin.offset) % INTERVAL, 0)
    return -math.expm1(-strength * (origin.progress[step] - origin.progress[before]))
