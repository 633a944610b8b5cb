"""The slow copy of the trained weights (exponential moving average)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class EMA:
    """Follows `parameters`: after n updates it is moved by 1 - min(decay, (1 + n) / (10 + n)), so
    that a short run's average is not mostly the weights it began with."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.averages = [parameter.detach().clone() for parameter in parameters]
        self.decay = decay
        self.num_updates = 0
        self.is_applied = False
        """Whether averages and parameters are exchanged, or about to be."""

    @torch.no_grad()
    def update(self) -> None:
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self.averages, self.parameters, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the averages stand in the parameters' place; after, the parameters are back."""
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
        # By exchanging who holds which memory: that takes none, and so cannot run out half-way.
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            parameter.data, average.data = average.data, parameter.data
