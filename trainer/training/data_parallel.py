"""The gradients of all processes that train together, by PyTorch's DistributedDataParallel."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.batch import Batch
from ..processes import Processes

Losses = Callable[[Batch], Tensor]


class DataParallel:
    """Computes losses so that the last backward pass of a step leaves the sum of all processes'
    gradients in each parameter.

    Every process must make at least one pass per step. Numbers of passes may differ."""

    is_sharded = False
    """Whether each process has only a part of the weights, so that all are needed to save them."""

    def __init__(
        self, losses: Losses, parameters: Sequence[nn.Parameter], processes: Processes
    ) -> None:
        """With one process, gradients are left alone."""
        self._losses, self._parameters = losses, parameters
        self._is_shared = processes.size > 1
        self._trained: list[nn.Parameter] = []
        self._wrapped: DistributedDataParallel | None = None

    def losses(self, batch: Batch) -> Tensor:
        """The losses [B] of a batch. Call it and the backward pass inside `passing`."""
        wrapped = self._wrapped
        losses: Tensor = wrapped(batch) if wrapped else self._losses(batch)
        return losses

    def passing(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Encloses a pass. `is_last`: it is the last of the step."""
        if not self._is_shared:
            return nullcontext()
        wrapped = self._wrap()
        return nullcontext() if is_last else wrapped.no_sync()

    def padded(self, batches: list[Batch]) -> list[Batch]:
        """The batches of a step, with as many added as the processes need."""
        return batches

    def whole_weights(self, *, for_drawing: bool) -> AbstractContextManager[None]:
        """Inside, the leader's model has whole weights, if only to read them. `for_drawing`: it can
        compute with them, for which it needs more of the device's memory."""
        return nullcontext()

    def whole(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A session's state with whole tensors. All processes call it with the same keys."""
        return state

    def own(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """This process's part of a session's state with whole tensors."""
        return state

    def _wrap(self) -> DistributedDataParallel:
        """The wrapper of the parameters that are trained now: some freeze during a run."""
        trained = [p for p in self._parameters if p.requires_grad]
        if self._wrapped is None or len(trained) != len(self._trained):
            self._trained = trained
            module = _Losses(self._losses, trained)
            self._wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True)
            _sum_instead_of_mean(self._wrapped)
        return self._wrapped


class _Losses(nn.Module):
    """A module whose parameters are those that are trained, which DistributedDataParallel needs."""

    def __init__(self, losses: Losses, trained: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self._losses, self._trained = losses, nn.ParameterList(trained)

    def forward(self, batch: Batch) -> Tensor:
        return self._losses(batch)


def _sum_instead_of_mean(wrapped: DistributedDataParallel) -> None:
    """Losses are shares of the step's loss, so their gradients are not averaged."""

    def add_up(state: None, bucket: Any) -> torch.futures.Future[Tensor]:
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    # PyTorch compares the annotations with these types, which not every build of it has.
    add_up.__annotations__["bucket"] = dist.GradBucket  # type: ignore[attr-defined]
    wrapped.register_comm_hook(None, add_up)
