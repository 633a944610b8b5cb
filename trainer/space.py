"""Room on the disk for what a run will write, estimated before its first step."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import optimizers, states
from .methods.base import FileOut
from .precision import DTYPES
from .session import Session

logger = logging.getLogger(__name__)

NUM_BEST = 2
"""The best one so far, and the next while it is written."""
BYTES_PER_WEIGHT = 4
"""Of a weight in training, and of its average."""


@dataclass(frozen=True, slots=True)
class Need:
    """Files of one kind and about one size that will be on the disk at the same time."""

    folder: Path
    what: str
    num: int
    size: int
    """Bytes of each."""
    is_result: bool = False
    """Without room for it the run is of no use."""

    def __str__(self) -> str:
        return f"{self.num} {self.what} of {amount(self.size)}"


def check(session: Session, states_folder: Path | None, *, is_scored: bool = False) -> None:
    """OSError where the run's result will not fit on the disk; a warning where intermediate
    checkpoints and states will not all."""
    by_disk: dict[int, list[Need]] = {}
    for need in _needs(session, states_folder, is_scored):
        by_disk.setdefault(_disk(need.folder), []).append(need)
    for needs in by_disk.values():
        folder = _existing(needs[0].folder)
        free = shutil.disk_usage(folder).free
        results = [need for need in needs if need.is_result]
        if free < _total(results):
            raise OSError(
                f"The run will write {_listed(results)} into '{results[0].folder}', where "
                f"{amount(free)} are free. Free some, choose another folder, or set output.dtype "
                "to fp16."
            )
        if free < _total(needs):
            logger.warning(
                "The run will want %s on the disk of '%s', where %s are free: %s. What does not "
                "fit is left out until there is room, and a run that is ended early then goes on "
                "from further back. Free some, or lower output.keep.",
                amount(_total(needs)), folder, amount(free), _listed(needs),
            )  # fmt: skip


def require_for_step(session: Session) -> None:
    """OSError where an intermediate checkpoint would take the room that the result needs."""
    for file in _checkpoints(session):
        _require(file.output.folder, "a checkpoint", file_size(session, file), session)


def require_for_state(session: Session, folder: Path, *, is_last: bool) -> None:
    """OSError where a state would take the room that the result needs; nothing is left for that
    once the run has ended early. The older of two states goes before there is too little."""
    size, result = state_size(session), None if is_last else session
    try:
        _require(folder, "a state", size, result)
    except OSError:
        states.remove(folder, keep=1)
        _require(folder, "a state", size, result)


def _require(folder: Path, what: str, size: int, result_of: Session | None) -> None:
    folder = _existing(folder)
    left = 0
    if result_of:
        left = sum(
            file_size(result_of, file)
            for file in _checkpoints(result_of)
            if _disk(file.output.folder) == _disk(folder)
        )
    free = shutil.disk_usage(folder).free
    if free < size + left:
        reason = f", and the run's result still {amount(left)}" if left else ""
        raise OSError(f"{what} needs {amount(size)}{reason}; '{folder}' has {amount(free)} free")


def state_size(session: Session) -> int:
    """About how many bytes a state takes."""
    num_weights = sum(parameter.numel() for parameter in session.parameters)
    return state_bytes_per_weight(session) * num_weights


def state_bytes_per_weight(session: Session) -> int:
    """What a state takes for each trained weight."""
    kept = BYTES_PER_WEIGHT * (2 if session.ema else 1)
    return kept + optimizers.OPTIMIZERS[session.config.optimizer.name].bytes_per_weight


def amount(num_bytes: int) -> str:
    """Such as "10.3 GB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _needs(session: Session, states_folder: Path | None, is_scored: bool) -> Iterator[Need]:
    output, steps_left = session.config.output, session.config.steps - len(session.reports)
    for file in _checkpoints(session):
        size = file_size(session, file)
        yield Need(file.output.folder, "checkpoint", 1, size, is_result=True)
        num = min(output.keep, steps_left // output.save_every) if output.save_every else 0
        yield Need(file.output.folder, "intermediate checkpoints", num, size)
        if is_scored:
            yield Need(file.output.folder, "best checkpoints", NUM_BEST, size)
    if states_folder:
        num = states.NUM_NEEDED if 0 < output.state_every < steps_left else 1
        there = states.count(states_folder)
        yield Need(states_folder, "states", max(0, num - there), state_size(session))


def file_size(session: Session, file: FileOut) -> int:
    """Of a checkpoint: the base model's, with the trained weights in their new number format."""
    size = session.model.path.stat().st_size
    choice = session.config.output.dtype
    for name, tensor in session.trainable.file_tensors(file).items():
        old = file.original.dtypes[name]
        new = old if choice == "as input" else DTYPES[choice]
        size += tensor.numel() * (new.itemsize - old.itemsize)
    return size


def _checkpoints(session: Session) -> list[FileOut]:
    return [file for file in session.trainable.files if file.kind == "checkpoint"]


def _disk(folder: Path) -> int:
    return os.stat(_existing(folder)).st_dev


def _existing(folder: Path) -> Path:
    return next(path for path in [folder, *folder.parents] if path.exists())


def _total(needs: list[Need]) -> int:
    return sum(need.num * need.size for need in needs)


def _listed(needs: list[Need]) -> str:
    return ", ".join(str(need) for need in needs if need.num)
