"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class EMA:
    """A moving average of `parameters`. Update n uses the decay min(decay, (1 + n) / (10 + n)), so
    that the average of a short run does not consist mostly of the initial weights."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.averages = [parameter.detach().clone() for parameter in parameters]
        self.decay = decay
        self.num_updates = 0
        self.is_applied = False
        """Whether averages and parameters are, or are being, swapped."""

    @torch.no_grad()
    def update(self) -> None:
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self.averages, self.parameters, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the parameters by their averages, and restore them afterwards."""
        self.is_applied = True
        self._swap()
        try:
            yield
        finally:
            self._swap()
            self.is_applied = False

    def state(self) -> dict[str, Any]:
        return {"averages": self.averages, "num_updates": self.num_updates}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.copy_(saved)
        self.num_updates = state["num_updates"]

    def _swap(self) -> None:
        # Swaps the storage instead of copying: this needs no memory, so it cannot fail half-way.
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            parameter.data, average.data = average.data, parameter.data
