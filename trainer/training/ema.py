"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .. import weights


class EMA:
    """A moving average of `parameters`, in 24 bits if they are stored in less than fp32. Update n
    uses the decay min(decay, (1 + n) / (10 + n)), so that the average of a short run does not
    consist mostly of the initial weights. `seed` decides how 24-bit averages are rounded."""

    def __init__(self, parameters: Sequence[Tensor], decay: float, seed: int = 0) -> None:
        self.parameters = list(parameters)
        self.averages = [weights.copy(parameter) for parameter in parameters]
        self.num_updates = 0
        self.is_applied = False
        """Whether averages and parameters are, or are being, swapped."""
        self._decay, self._seed = decay, seed
        self._generator = torch.Generator(parameters[0].device)
        stored = [weights.is_stored(parameter) for parameter in parameters]
        pairs = list(zip(self.averages, self.parameters, stored, strict=True))
        self._in_fp32 = [(average, p) for average, p, is_stored in pairs if not is_stored]
        self._stored = [(average, p) for average, p, is_stored in pairs if is_stored]

    @torch.no_grad()
    def update(self) -> None:
        self.num_updates += 1
        weight = 1 - min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        if self._in_fp32:
            averages, parameters = (list(tensors) for tensors in zip(*self._in_fp32, strict=True))
            torch._foreach_lerp_(averages, parameters, weight)
        for index, (average, parameter) in enumerate(self._stored):
            values = weights.value(average).lerp_(weights.value(parameter), weight)
            weights.reseed(self._generator, "average", self._seed, self.num_updates, index)
            weights.write(average, values, self._generator)

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
        rests = [weights.rest_of(average) for average in self.averages]
        return {"averages": self.averages, "rests": rests, "num_updates": self.num_updates}

    def load_state(self, state: Mapping[str, Any]) -> None:
        weights.restore_all(self.averages, state["averages"], state.get("rests"))
        self.num_updates = state["num_updates"]

    def _swap(self) -> None:
        # Swaps the storage instead of copying: this needs no memory, so it cannot fail half-way.
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            weights.swap(parameter, average)
