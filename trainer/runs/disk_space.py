"""Room on the disk for what a run will write, estimated before its first step."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..families.base import ModelFamily
from ..methods.base import OutputFile, Trainable
from ..optimization import optimizers
from ..precision import DTYPES
from ..settings.config import TrainingConfig
from ..storage import states
from ..training.session import Session

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
        return f"{self.num} {self.what} of {format_bytes(self.size)}"


def check(
    config: TrainingConfig,
    model: ModelFamily,
    trainable: Trainable,
    *,
    states_folder: Path | None,
    steps_made: int = 0,
    is_scored: bool = False,
) -> None:
    """OSError where the run's result will not fit on the disk; a warning where intermediate
    checkpoints and states will not all. `steps_made` were made by an earlier session."""
    needs = [*_checkpoint_needs(config, model, trainable, steps_made, is_scored)]
    if states_folder:
        is_early = 0 < config.output.state_every < config.steps - steps_made
        num = (states.NUM_NEEDED if is_early else 1) - states.count(states_folder)
        needs.append(
            Need(states_folder, "states", max(0, num), state_size(config, model, trainable))
        )
    _require_room(needs)


def _require_room(needs: Sequence[Need]) -> None:
    by_disk: dict[int, list[Need]] = {}
    for need in needs:
        by_disk.setdefault(_disk(need.folder), []).append(need)
    for needs in by_disk.values():
        folder = _existing(needs[0].folder)
        free = shutil.disk_usage(folder).free
        results = [need for need in needs if need.is_result]
        if free < _total(results):
            raise OSError(
                f"The run will write {_listed(results)} into '{results[0].folder}', where "
                f"{format_bytes(free)} are free. Free some, choose another folder, or set "
                "output.dtype to fp16."
            )
        if free < _total(needs):
            logger.warning(
                "The run will want %s on the disk of '%s', where %s are free: %s. What does not "
                "fit is left out until there is room, and a run that is ended early then goes on "
                "from further back. Free some, or lower output.keep.",
                format_bytes(_total(needs)), folder, format_bytes(free), _listed(needs),
            )  # fmt: skip


def require_for_step(session: Session) -> None:
    """OSError where an intermediate checkpoint would take the room that the result needs."""
    for file in _checkpoints(session.trainable):
        size = file_size(session.model, session.trainable, file)
        _require(file.output.folder, "a checkpoint", size, session)


def require_for_state(session: Session, folder: Path, *, is_last: bool) -> None:
    """OSError where a state would take the room that the result needs; nothing is left for that
    once the run has ended early. The older of two states goes before there is too little."""
    size = state_size(session.config, session.model, session.trainable)
    result = None if is_last else session
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
            file_size(result_of.model, result_of.trainable, file)
            for file in _checkpoints(result_of.trainable)
            if _disk(file.output.folder) == _disk(folder)
        )
    free = shutil.disk_usage(folder).free
    if free < size + left:
        reason = f", and the run's result still {format_bytes(left)}" if left else ""
        raise OSError(
            f"{what} needs {format_bytes(size)}{reason}; '{folder}' has {format_bytes(free)} free"
        )


def state_size(config: TrainingConfig, model: ModelFamily, trainable: Trainable) -> int:
    """About how many bytes a state takes."""
    parameters = [p for part in trainable.parts for p in part.parameters]
    copies = 2 if config.ema else 1
    weights = sum(p.numel() for p in parameters) * BYTES_PER_WEIGHT * copies
    return weights + optimizers.state_bytes(config.optimizer.name, parameters, model.embeddings())


def format_bytes(num_bytes: int) -> str:
    """Such as "10.3 GB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _checkpoint_needs(
    config: TrainingConfig,
    model: ModelFamily,
    trainable: Trainable,
    steps_made: int,
    is_scored: bool,
) -> Iterator[Need]:
    output, steps_left = config.output, config.steps - steps_made
    for file in _checkpoints(trainable):
        folder, size = file.output.folder, file_size(model, trainable, file)
        yield Need(folder, "checkpoint", 1, size, is_result=True)
        num = min(output.keep, steps_left // output.save_every) if output.save_every else 0
        yield Need(folder, "intermediate checkpoints", num, size)
        if is_scored:
            yield Need(folder, "best checkpoints", NUM_BEST, size)


def file_size(model: ModelFamily, trainable: Trainable, file: OutputFile) -> int:
    """Of a checkpoint: the base model's, with the trained weights in their new number format."""
    size = model.path.stat().st_size
    choice = file.output.dtype
    for name, tensor in trainable.file_tensors(file).items():
        old = file.original.dtypes[name]
        new = old if choice == "as input" else DTYPES[choice]
        size += tensor.numel() * (new.itemsize - old.itemsize)
    return size


def _checkpoints(trainable: Trainable) -> list[OutputFile]:
    return [file for file in trainable.files if file.kind == "checkpoint"]


def _disk(folder: Path) -> int:
    return os.stat(_existing(folder)).st_dev


def _existing(folder: Path) -> Path:
    return next(path for path in [folder, *folder.parents] if path.exists())


def _total(needs: list[Need]) -> int:
    return sum(need.num * need.size for need in needs)


def _listed(needs: list[Need]) -> str:
    return ", ".join(str(need) for need in needs if need.num)
