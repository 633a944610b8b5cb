"""Weights that are split among the processes that train together, by PyTorch's fully_shard
(FSDP2)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import weights
from ..data.batch import Batch
from ..families.base import ModelFamily
from ..methods.base import Part
from ..processes import ALONE, Processes, replaced
from ..settings.config import TrainingConfig
from .data_parallel import DataParallel, Losses

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

LARGEST_SHARE = 1 / 12
"""A module with more of its network's weights than this is split into the modules in it. The
weights of one module are whole at a time."""
FEW = 2**18
"""A module with fewer weights is not split into others."""
SMALLEST_SHARE = 1 / 1000
"""The weights of smaller modules are whole from the forward pass to the end of the backward pass,
because each exchange takes time."""
SPLIT = ("parameters", "optimizer", "average")
"""What is split of a session's state: everything with the shape of a weight."""


class Sharded(DataParallel):
    """Splits each weight by its first dimension. A process has its part of the weight, of the
    gradient, of the optimizer's state and of the moving average."""

    is_sharded = True

    def __init__(
        self,
        losses: Losses,
        parts: Sequence[Part],
        networks: Mapping[str, nn.Module],
        device: torch.device,
        processes: Processes,
    ) -> None:
        """Brings the networks of the parts to the device, and replaces the parameters of the
        parts by those of this process."""
        # Not at the top, because they are slow to import.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        super().__init__(losses, [], ALONE)
        self._processes, self._device = processes, device
        self._mesh = init_device_mesh(device.type, (processes.size,))
        self._modules: list[FSDPModule] = []
        self._networks: list[Any] = []
        """Their remaining weights are whole from the forward pass on."""
        for part in parts:
            network = networks[part.name]
            inner = list(_modules_to_split(network))
            self._modules += [fully_shard(module, mesh=self._mesh) for module in inner]
            self._networks.append(
                fully_shard(network, mesh=self._mesh, reshard_after_forward=False)
            )
            part.parameters[:] = network.parameters()
        for split in self._all:
            # Losses are shares of the step's loss, so their gradients are not averaged.
            split.set_gradient_divide_factor(1.0)
            split.set_force_sum_reduction_for_comms(True)

    def padded(self, batches: list[Batch]) -> list[Batch]:
        """Each process makes as many passes as the others, because weights are exchanged in each.
        Those that are added have no loss."""
        most = torch.tensor(len(batches))
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return batches + [batches[-1].without_loss()] * (int(most) - len(batches))

    @contextmanager
    def whole_weights(self, *, for_drawing: bool) -> Iterator[None]:
        if for_drawing and self._processes.is_leader:
            # If memory is short, fail before the others wait for this process.
            torch.empty(self._num_bytes(), dtype=torch.uint8, device=self._device)
        self._processes.call("show_average", for_drawing)
        try:
            with self._on_device() if for_drawing else self._in_main_memory():
                yield
        finally:
            self._processes.call("hide_average")

    def whole(self, state: Mapping[str, Any]) -> dict[str, Any]:
        from torch.distributed.tensor import DTensor

        self._processes.call("state")
        return dict(replaced(state, DTensor, _whole))

    def own(self, state: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: replaced(value, Tensor, self._own_part) if name in SPLIT else value
            for name, value in state.items()
        }

    @property
    def _all(self) -> list[FSDPModule]:
        return [*self._modules, *self._networks]

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """The leader's networks can compute without the other processes."""
        for module in self._all:
            module.unshard()
            if not self._processes.is_leader:
                module.reshard()
        self._keep_whole(self._processes.is_leader)
        try:
            yield
        finally:
            self._keep_whole(False)
            self._reshard()

    @contextmanager
    def _in_main_memory(self) -> Iterator[None]:
        """The leader's networks have whole parameters, which take no memory of the device."""
        # A network that is frozen by now is whole since its last forward pass.
        self._reshard()
        replaced_ones = []
        for network in self._networks:
            for owner in network.modules():
                for name, part in owner.named_parameters(recurse=False):
                    whole = _whole(part)
                    if self._processes.is_leader:
                        replaced_ones.append((owner, name, part))
                        setattr(owner, name, nn.Parameter(whole, requires_grad=False))
        try:
            yield
        finally:
            for owner, name, part in replaced_ones:
                setattr(owner, name, part)

    def _reshard(self) -> None:
        for module in self._all:
            module.reshard()

    def _num_bytes(self) -> int:
        return sum(p.nbytes for network in self._networks for p in network.parameters())

    def _keep_whole(self, are_whole: bool) -> None:
        for module in self._modules:
            module.set_reshard_after_forward(not are_whole, recurse=False)

    def _own_part(self, whole: Tensor) -> Tensor:
        """This process's part. Numbers, such as those that count steps, are not split."""
        from torch.distributed.tensor import DTensor, Shard

        if whole.ndim == 0:
            return whole
        part = weights.part_of(whole, self._processes.rank, self._processes.size)
        return DTensor.from_local(
            part.to(self._device), self._mesh, [Shard(0)],
            run_check=False, shape=whole.shape, stride=whole.stride(),
        )  # fmt: skip


@torch.no_grad()
def _whole(part: Any) -> Tensor:
    """The whole tensor, in main memory. All processes call it with their parts."""
    whole: Tensor = part.full_tensor()
    return whole.cpu()


def share_gradients(
    losses: Losses,
    config: TrainingConfig,
    parts: Sequence[Part],
    model: ModelFamily,
    processes: Processes,
) -> DataParallel:
    """What computes the losses of a session, and sums the gradients of all processes."""
    if config.sharded and processes.size == 1:
        logger.warning("sharded has no effect, because this process trains alone.")
    elif config.sharded:
        return Sharded(losses, parts, model.parts(), model.device, processes)
    # Released gradients are summed one by one, as soon as they are known.
    summed = ALONE if config.gradient_release else processes
    return DataParallel(losses, [p for part in parts for p in part.parameters], summed)


def _modules_to_split(network: nn.Module) -> Iterator[nn.Module]:
    """The modules in a network whose weights are exchanged together, without those of the rest."""
    total = _num_weights(network)
    most = max(total * LARGEST_SHARE, FEW)
    return _modules_in(network, most=most, least=total * SMALLEST_SHARE)


def _modules_in(module: nn.Module, *, most: float, least: float) -> Iterator[nn.Module]:
    for child in module.children():
        size = _num_weights(child)
        # A list is never called, and its weights would not become whole.
        is_list = isinstance(child, nn.ModuleList)
        if is_list or (size > most and any(True for _ in child.children())):
            yield from _modules_in(child, most=most, least=least)
        elif size > least:
            yield child


def _num_weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
