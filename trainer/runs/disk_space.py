"""Estimates the disk space that a run will need, and keeps enough of it free for the result."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import weights
from ..checkpoint import file_dtype
from ..families.base import ModelFamily
from ..methods.base import OutputFile, Trainable
from ..optimization import optimizers
from ..settings.config import TrainingConfig
from ..storage import states
from ..training.session import Session

logger = logging.getLogger(__name__)

NUM_BEST = 2
"""Best checkpoints that exist at once: the best so far, and the next one while it is written."""
HEADER_BYTES = 70
"""Of each tensor besides its name, in the header of a file."""


@dataclass(frozen=True, slots=True)
class Need:
    """Files of one kind and similar size that will exist at the same time."""

    folder: Path
    what: str
    num: int
    size: int
    """Bytes per file."""
    is_result: bool = False
    """Whether the run is useless without these files."""

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
    """Warn if the intermediate checkpoints and states will not all fit on the disk. Raises OSError
    if the result will not fit.

    states_folder: None: no states are saved.
    steps_made: The steps of earlier sessions.
    """
    needs = [*_checkpoint_needs(config, model, trainable, steps_made, is_scored)]
    if states_folder:
        saves_before_end = 0 < config.output.state_every < config.steps - steps_made
        num = (states.NUM_NEEDED if saves_before_end else 1) - states.count(states_folder)
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
                f"The run will write {_listed(results)} to '{results[0].folder}', but only "
                f"{format_bytes(free)} are free there. Free some space, choose another folder, or "
                "set output.dtype to fp16."
            )
        if free < _total(needs):
            logger.warning(
                "The run needs %s on the disk of '%s', but only %s are free: %s. Files that do not "
                "fit are skipped until there is space, so a run that is stopped may resume from an "
                "earlier step. Free some space, or lower output.keep.",
                format_bytes(_total(needs)), folder, format_bytes(free), _listed(needs),
            )  # fmt: skip


def require_for_step(session: Session) -> None:
    """Raise OSError if an intermediate checkpoint would leave too little space for the result."""
    for file in _large(session.trainable):
        size = file_size(session.trainable, file)
        _require(file.output.folder, "a checkpoint", size, session)


def require_for_state(session: Session, folder: Path, *, is_last: bool) -> None:
    """Raise OSError if a state would leave too little space for the result. If necessary, the older
    of two states is deleted first. `is_last`: the run ends early, so it needs no space for a
    result."""
    size = state_size(session.config, session.model, session.trainable)
    result = None if is_last else session
    try:
        _require(folder, "a state", size, result)
    except OSError:
        states.remove(folder, keep=1)
        _require(folder, "a state", size, result)


def _require(folder: Path, what: str, size: int, result_of: Session | None) -> None:
    """`what` needs `size` bytes beside the result of the session, if one is given."""
    folder = _existing(folder)
    reserved = 0
    if result_of:
        reserved = sum(
            file_size(result_of.trainable, file)
            for file in _large(result_of.trainable)
            if _disk(file.output.folder) == _disk(folder)
        )
    free = shutil.disk_usage(folder).free
    if free < size + reserved:
        also = f", and the run's result another {format_bytes(reserved)}" if reserved else ""
        raise OSError(
            f"{what} needs {format_bytes(size)}{also}, but '{folder}' has only "
            f"{format_bytes(free)} free"
        )


def state_size(config: TrainingConfig, model: ModelFamily, trainable: Trainable) -> int:
    """The approximate size of a state in bytes."""
    parameters = [p for part in trainable.parts for p in part.parameters]
    size = sum(map(weights.num_bytes, parameters))
    if config.ema:
        size += sum(p.numel() * (3 if weights.is_stored(p) else 4) for p in parameters)
    return size + optimizers.state_bytes(config.optimizer.name, parameters, model.embeddings())


def format_bytes(num_bytes: int) -> str:
    """A number of bytes for people, such as "10.3 GB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _checkpoint_needs(
    config: TrainingConfig,
    model: ModelFamily,
    trainable: Trainable,
    steps_made: int,
    is_scored: bool,
) -> Iterator[Need]:
    output, steps_left = config.output, config.steps - steps_made
    for file in _large(trainable):
        folder, size = file.output.folder, file_size(trainable, file)
        yield Need(folder, "checkpoint", 1, size, is_result=True)
        num = min(output.keep, steps_left // output.save_every) if output.save_every else 0
        yield Need(folder, "intermediate checkpoints", num, size)
        if is_scored:
            yield Need(folder, "best checkpoints", NUM_BEST, size)


def file_size(trainable: Trainable, file: OutputFile) -> int:
    """The approximate size of a written file in bytes, with the trained weights in their new number
    format."""
    dtypes = dict(file.original.dtypes)
    for name in trainable.file_tensors(file):
        dtypes[name] = file_dtype(dtypes[name], file.output.dtype)
    shapes = file.original.shapes
    return sum(
        math.prod(shapes[name]) * dtype.itemsize + len(name) + HEADER_BYTES
        for name, dtype in dtypes.items()
    )


def _large(trainable: Trainable) -> list[OutputFile]:
    """The files that are large enough to count."""
    return [file for file in trainable.files if file.kind != "embedding"]


def _disk(folder: Path) -> int:
    """A number that is the same for folders on the same disk."""
    return os.stat(_existing(folder)).st_dev


def _existing(folder: Path) -> Path:
    """The folder, or the nearest parent that exists."""
    return next(path for path in [folder, *folder.parents] if path.exists())


def _total(needs: list[Need]) -> int:
    return sum(need.num * need.size for need in needs)


def _listed(needs: list[Need]) -> str:
    return ", ".join(str(need) for need in needs if need.num)
