"""The processes that train together, one for each GPU, on one or more machines. `torchrun` or
`accelerate launch` starts them. The first one, the leader, runs the whole program; the others
follow its calls, so that each step's images are shared among all."""

from __future__ import annotations

import io
import os
import pickle
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

NO_LIMIT = timedelta(days=365)
"""How long a process waits for the others. Previews and files can take any time; `torchrun` notices
a process that has ended."""
FAULT = "fault"
"""The key under which a follower leaves the reason why it ends."""
END = "end"
ENDED = (
    "Another of the {size} processes that train together has ended{reason}. None can go on without "
    "the others. Run the same again to resume."
)


class Processes:
    """A process that trains alone."""

    rank = 0
    """Counted from 0, which is the leader's."""
    size = 1
    """The number of processes."""

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    def call(self, task: str, *arguments: Any) -> None:
        """Called by the leader: every follower does its part of this task. The leader must then do
        its own part. Does nothing in a follower."""

    def share_of(self, items: Sequence[T], *, before: int = 0) -> Sequence[T]:
        """This process's part of the items, which are dealt out in turn. `before`: how many were
        dealt out already."""
        return items[(self.rank - before) % self.size :: self.size]

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes."""

    def gather(self, values: Iterable[T]) -> Iterable[T]:
        """The values of all processes, in the order in which `share_of` dealt them out; in a
        follower, only its own."""
        return values


ALONE = Processes()


class JoinedProcesses(Processes):
    """A process that trains together with others, connected by torch.distributed."""

    def __init__(self, device: torch.device) -> None:
        self._store, self.rank, self.size = next(rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=self._store, rank=self.rank, world_size=self.size, timeout=NO_LIMIT
        )

    def call(self, task: str, *arguments: Any) -> None:
        if self.is_leader:
            _send((task, arguments))

    def next_call(self) -> tuple[str, tuple[Any, ...]]:
        """Called by a follower: the leader's next task, and its arguments, whose tensors are on the
        CPU."""
        task, arguments = _receive()
        return task, arguments

    def sum_(self, tensor: Tensor) -> None:
        dist.all_reduce(tensor)

    def gather(self, values: Iterable[T]) -> Iterable[T]:
        if not self.is_leader:
            dist.gather_object(list(values), None)
            return list(values)
        parts: list[Any] = [None] * self.size
        dist.gather_object(list(values), parts)
        longest = max(len(part) for part in parts)
        return [part[index] for index in range(longest) for part in parts if index < len(part)]

    def note_fault(self, reason: str) -> None:
        """Tell the leader why this process ends."""
        self._store.set(FAULT, f"process {self.rank + 1}: {reason}")

    def ended(self) -> str:
        """The message that another process has ended, with its reason if it gave one."""
        known = self._store.check([FAULT])
        reason = f" ({self._store.get(FAULT).decode()})" if known else ""
        return ENDED.format(size=self.size, reason=reason)


def are_requested() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_follower() -> bool:
    """Whether this process was started as one of several, and not as their leader."""
    return are_requested() and os.environ["RANK"] != "0"


def own_device() -> str:
    """The name of this process's GPU; "" if its machine has none that PyTorch can use."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else ""


@contextmanager
def leading(processes: JoinedProcesses) -> Iterator[None]:
    """Encloses the leader's program. Lets the followers end afterwards.

    Raises RuntimeError if a follower has ended in the meantime."""
    try:
        yield
    except BaseException as error:
        if _is_lost_connection(error) or not _are_told_to_end(processes):
            raise RuntimeError(processes.ended()) from error
        raise
    if not _are_told_to_end(processes):
        raise RuntimeError(processes.ended())


def follow(processes: JoinedProcesses, tasks: object) -> int:
    """Do the leader's calls, which are methods of `tasks`, until it or another process ends. Return
    the exit code. Says nothing: the leader reports what happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader ends the run
    try:
        while (call := processes.next_call())[0] != END:
            getattr(tasks, call[0])(*call[1])
    except Exception as error:
        if not _is_lost_connection(error):
            processes.note_fault(f"{error}")
            return 1
    return 0


def _are_told_to_end(processes: JoinedProcesses) -> bool:
    """Let the followers end. Returns False if one of them has ended before."""
    try:
        processes.call(END)
    except RuntimeError as error:
        if _is_lost_connection(error):
            return False
        raise
    return True


def _is_lost_connection(error: BaseException) -> bool:
    """Whether another process has ended, in the middle of what all do together."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


class _Pickler(pickle.Pickler):
    """Leaves out the tensors, and collects them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return value.shape, value.dtype


class _Unpickler(pickle.Unpickler):
    """Puts empty tensors in their places, and collects them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_load(self, pid: Any) -> Tensor:
        shape, dtype = pid
        self.tensors.append(torch.empty(shape, dtype=dtype))
        return self.tensors[-1]


def _send(value: Any) -> None:
    """Send a value to all followers, its tensors one by one, so that no second copy of all of them
    is needed."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    content = torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)
    dist.broadcast(torch.tensor([content.numel()]), src=0)
    dist.broadcast(content, src=0)
    for tensor in pickler.tensors:
        _broadcast(tensor.detach().cpu().contiguous())


def _receive() -> Any:
    num_bytes = torch.empty(1, dtype=torch.int64)
    dist.broadcast(num_bytes, src=0)
    content = torch.empty(int(num_bytes), dtype=torch.uint8)
    dist.broadcast(content, src=0)
    unpickler = _Unpickler(io.BytesIO(content.numpy().tobytes()))
    value = unpickler.load()
    for tensor in unpickler.tensors:
        _broadcast(tensor)
    return value


def _broadcast(tensor: Tensor) -> None:
    """As bytes, because gloo does not know all number formats."""
    if tensor.numel():
        dist.broadcast(tensor.reshape(-1).view(torch.uint8), src=0)
