"""An optimizer step for each weight by itself, so that only one weight at a time needs a gradient,
and its values in fp32."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import weights
from ..families.base import ModelFamily
from ..methods.base import Part
from ..optimization import optimizers
from ..optimization.weight_optimizer import WeightOptimizer
from ..processes import ALONE, Processes
from ..settings.config import TrainingConfig
from .anchor import Anchor
from .gradient_step import GradientStep, ParamGroup, group_of

logger = logging.getLogger(__name__)


class PerWeightStep(GradientStep):
    """Updates each large weight with its own optimizer, and all small ones together at the end.

    Released, a large weight is updated in the last backward pass, as soon as its gradient is known;
    the gradient is then discarded, so gradients cannot be clipped to a norm that all of them
    have together. Otherwise they are gathered and clipped first.

    With several processes, the gradient of a released weight is summed over all of them first."""

    def __init__(
        self,
        config: TrainingConfig,
        model: ModelFamily,
        parts: Sequence[Part],
        processes: Processes = ALONE,
        anchor: Anchor | None = None,
    ) -> None:
        super().__init__(config, parts, anchor)
        self._processes = processes
        self.is_released = config.gradient_release
        exact = model.embeddings()
        self._large = {
            parameter: WeightOptimizer(
                parameter, group_of(part, []), config, is_exact=any(parameter is e for e in exact)
            )
            for part in parts
            for parameter in part.parameters
            if weights.is_large(parameter)
        }
        small = {
            part.name: group_of(part, [p for p in part.parameters if not weights.is_large(p)])
            for part in parts
        }
        groups = {name: group for name, group in small.items() if group["params"]}
        self._small = (
            optimizers.build([*groups.values()], config.optimizer, exact) if groups else None
        )
        self._parts_with_small = list(groups)
        self._generator = torch.Generator(model.device)
        self._step = 0
        self._is_last_pass = False
        self._released_norms: list[Tensor] = []
        if self.is_released:
            self._release()

    def groups(self, part: Part) -> list[ParamGroup]:
        groups = [self._large[p].group for p in part.parameters if p in self._large]
        if self._small and part.name in self._parts_with_small:
            groups.append(self._small.param_groups[self._parts_with_small.index(part.name)])
        return groups

    def set_learning_rates(self, step: int) -> dict[str, float]:
        self._step = step
        return super().set_learning_rates(step)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        self._is_last_pass = is_last
        loss.backward()  # type: ignore[no-untyped-call]

    def clip_gradients(self) -> Tensor:
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        if self.is_released:  # those left are small
            for gradient in gradients:
                self._processes.sum_(gradient)
        norms = [*self._released_norms, *map(_norm, gradients)]
        self._released_norms = []
        norm = torch.linalg.vector_norm(torch.stack(norms))
        limit = self._config.optimizer.max_grad_norm
        if limit and not self.is_released:
            scale = (limit / (norm + 1e-6)).clamp(max=1)  # as torch.nn.utils.clip_grad_norm_
            for gradient in gradients:
                gradient.mul_(scale)
        return norm

    def update_weights(self, step: int) -> bool:
        for index, parameter in enumerate(self._large):
            if parameter.grad is not None:
                self._update(index, parameter)
        if self._small:
            self._small.step()
            self._small.zero_grad(set_to_none=True)
        if self._anchor:
            for parameter in self._parameters():
                if parameter not in self._large:
                    self._anchor.pull(parameter, parameter.data, step)
        return True

    def state(self) -> dict[str, Any]:
        optimizer = {
            "large": [optimizer.state() for optimizer in self._large.values()],
            "small": self._small.state_dict() if self._small else None,
        }
        return {"optimizer": optimizer}

    def load_state(self, state: Mapping[str, Any]) -> None:
        saved = state["optimizer"]
        for optimizer, one in zip(self._large.values(), saved["large"], strict=True):
            optimizer.load_state(one)
        if self._small:
            self._small.load_state_dict(saved["small"])

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for part in self._parts for parameter in part.parameters)

    def _release(self) -> None:
        for index, parameter in enumerate(self._large):
            hook = partial(self._on_gradient, index)
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        if limit := self._config.optimizer.max_grad_norm:
            logger.warning(
                "max_grad_norm (%g) is not applied, because gradient_release discards each "
                "gradient before the norm of all is known.", limit,
            )  # fmt: skip

    def _on_gradient(self, index: int, parameter: Tensor) -> None:
        """Called in a backward pass when a parameter's gradient is complete."""
        if self._is_last_pass:
            assert parameter.grad is not None
            self._processes.sum_(parameter.grad)
            self._released_norms.append(_norm(parameter.grad))
            self._update(index, parameter)

    def _update(self, index: int, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        weights.reseed(self._generator, self._config.seed, self._step, index)
        anchor = self._anchor
        pull = partial(anchor.pull, parameter, step=self._step) if anchor else None
        self._large[parameter].step(gradient, self._generator, pull)  # type: ignore[index]


_norm: Callable[[Tensor], Tensor] = partial(torch.linalg.vector_norm, dtype=torch.float32)
