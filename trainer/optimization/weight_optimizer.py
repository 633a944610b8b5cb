"""The optimizer of a single weight. It works on the weight's values in fp32, which exist only while
it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import weights
from ..settings.config import TrainingConfig
from . import optimizers

CPU = torch.device("cpu")


class WeightOptimizer:
    """One of the optimizers of `optimizers.py`, for one weight in any format. With
    `config.offload`, its state and the weight's rest are in main memory between steps."""

    def __init__(
        self, weight: nn.Parameter, group: dict[str, Any], config: TrainingConfig, *, is_exact: bool
    ) -> None:
        """`group` has the options of the optimizer's parameter group. `is_exact`: the state is kept
        in fp32, even by an 8-bit optimizer."""
        self._weight = weight
        self._on_matrices = optimizers.OPTIMIZERS[config.optimizer.name].on_matrices
        self._shadow = nn.Parameter(torch.empty(0, device=weight.device))
        self._optimizer = optimizers.build(
            [{**group, "params": [self._shadow]}],
            config.optimizer,
            exact=[self._shadow] if is_exact else (),
        )
        self._homes: dict[str, Tensor] | None = {} if config.offload else None
        rest = weights.rest_of(weight)
        if config.offload and rest is not None:
            weights.set_rest(weight, _in_main_memory(rest))

    @property
    def group(self) -> dict[str, Any]:
        """The optimizer's parameter group."""
        group: dict[str, Any] = self._optimizer.param_groups[0]
        return group

    @torch.no_grad()
    def step(
        self,
        gradient: Tensor,
        generator: torch.Generator,
        change: Callable[[Tensor], None] | None = None,
    ) -> None:
        """Update the weight. `generator` rounds it to its format; before that, `change` can change
        the new values [fp32] in place."""
        values = weights.value(self._weight)
        self._shadow.data = self._seen(values)
        self._shadow.grad = self._seen(gradient.to(torch.float32))
        self._move_state(self._weight.device)
        self._optimizer.step()
        self._move_state(CPU)
        self._shadow.grad = None
        if change:
            change(self._shadow.data.view(self._weight.shape))
        if not self._shares_memory():
            weights.write(self._weight, self._shadow.data.view(self._weight.shape), generator)
        self._shadow.data = self._shadow.new_empty(0)

    def state(self) -> dict[str, Any]:
        """The optimizer's state, for `load_state`."""
        return self._optimizer.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from the `state()` of an optimizer of the same kind."""
        self._optimizer.load_state_dict(state)
        self._move_state(CPU)

    def _seen(self, tensor: Tensor) -> Tensor:
        """A tensor in the shape that the optimizer works on. Contiguous, so that the order of its
        state does not depend on the weight's memory format."""
        contiguous = tensor.contiguous()
        return contiguous.flatten(1) if self._on_matrices else contiguous

    def _shares_memory(self) -> bool:
        """Whether the optimizer has changed the weight itself."""
        return not weights.is_stored(self._weight) and self._weight.is_contiguous()

    def _move_state(self, device: torch.device) -> None:
        """With offload, move the large tensors of the optimizer's state to a device."""
        if self._homes is None:
            return
        state = self._optimizer.state[self._shadow]
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.numel() < weights.MIN_NUMBERS:
                continue
            if device == CPU:
                state[name] = self._bring_home(name, value)
            else:
                state[name] = value.to(device)

    def _bring_home(self, name: str, value: Tensor) -> Tensor:
        """Copy a tensor of the state to its place in main memory, which is reused."""
        assert self._homes is not None
        if name not in self._homes:
            self._homes[name] = _in_main_memory(value)
        home = self._homes[name]
        return home if value is home else home.copy_(value)


def _in_main_memory(tensor: Tensor) -> Tensor:
    """A copy in main memory, which the GPU can read without a detour."""
    is_pinned = tensor.device.type == "cuda"
    return torch.empty_like(tensor, device=CPU, pin_memory=is_pinned).copy_(tensor)
