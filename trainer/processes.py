"""The processes that train together, one for each GPU, on one or more machines. `torchrun` starts
them. The first one, the leader, runs the whole program; the others follow its calls, so that each
step's images are shared among all."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

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


class Terminated(Exception):
    """`torchrun` ends this process, because another one has ended."""


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
        """Raises ValueError if this PyTorch cannot connect processes."""
        if not dist.is_available():
            raise ValueError(
                "This PyTorch was built without torch.distributed, so it cannot use several "
                "processes. Start one without torchrun, or install another PyTorch."
            )
        # Not at the top, for a ComfyUI with such a PyTorch.
        from torch.distributed.rendezvous import rendezvous

        self._store, self.rank, self.size = next(rendezvous("env://"))
        backend = "gloo"
        if device.type == "cuda":
            backend = "cpu:gloo,cuda:nccl"
            torch.cuda.set_device(device)
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

    def leave(self) -> None:
        """Disconnect from the others, once all of them do so."""
        dist.barrier()
        dist.destroy_process_group()

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
    return int(os.getenv("WORLD_SIZE", "1")) > 1


def is_follower() -> bool:
    """Whether this process was started as one of several, and not as their leader."""
    return are_requested() and os.getenv("RANK") != "0"


def own_device() -> str:
    """The name of this process's GPU; "" if its machine has none that PyTorch can use."""
    return f"cuda:{os.getenv('LOCAL_RANK', '0')}" if torch.cuda.is_available() else ""


@contextmanager
def leading(processes: JoinedProcesses) -> Iterator[None]:
    """Encloses the leader's program. Lets the followers end after it; if it fails, they notice that
    they have lost the leader.

    Raises RuntimeError if a follower has ended in the meantime."""
    try:
        yield
        processes.call(END)
        processes.leave()
    except Exception as error:
        if _is_lost_connection(error):
            raise RuntimeError(processes.ended()) from error
        raise


def follow(processes: JoinedProcesses, tasks: object) -> int:
    """Do the leader's calls, which are methods of `tasks`, until it or another process ends. Return
    the exit code. Says nothing: the leader reports what happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader ends the run
    try:
        while (call := processes.next_call())[0] != END:
            getattr(tasks, call[0])(*call[1])
        processes.leave()
    except Exception as error:
        if _is_lost_connection(error):
            return 0
        processes.note_fault(f"{error}")
        return 1
    return 0


def end(code: int) -> NoReturn:
    """End one of several processes with this exit code, and without Python's usual shutdown: gloo
    may abort a process that shuts down while one of its threads still works, or without the
    others. `torchrun` would then report a finished run as failed."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _is_lost_connection(error: Exception) -> bool:
    """Whether another process has ended, in the middle of what all do together."""
    return isinstance(error, Terminated | dist.DistError) or "gloo" in str(error).lower()


def replaced(value: Any, kind: type[T], replace: Callable[[T], Any]) -> Any:
    """The same value with everything of a kind replaced that is in its dicts, lists and tuples, in
    their order."""
    if isinstance(value, kind):
        return replace(value)
    if isinstance(value, dict):
        return {key: replaced(each, kind, replace) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([replaced(each, kind, replace) for each in value])
    return value


@dataclass(frozen=True, slots=True)
class _Missing:
    """Takes the place of a tensor in a value that is sent without its tensors."""

    shape: torch.Size
    dtype: torch.dtype


def _send(value: Any) -> None:
    """Send a value to all followers. Its tensors are sent one by one, so that no second copy of all
    of them is needed."""
    tensors: list[Tensor] = []

    def take(tensor: Tensor) -> _Missing:
        tensors.append(tensor)
        return _Missing(tensor.shape, tensor.dtype)

    dist.broadcast_object_list([replaced(value, Tensor, take)], src=0)
    for tensor in tensors:
        _broadcast(tensor.detach().cpu().contiguous())


def _receive() -> Any:
    def read(missing: _Missing) -> Tensor:
        tensor = torch.empty(missing.shape, dtype=missing.dtype)
        _broadcast(tensor)
        return tensor

    received = [None]
    dist.broadcast_object_list(received, src=0)
    return replaced(received[0], _Missing, read)


def _broadcast(tensor: Tensor) -> None:
    """As bytes, because gloo does not know all number formats."""
    if tensor.numel():
        dist.broadcast(tensor.reshape(-1).view(torch.uint8), src=0)
