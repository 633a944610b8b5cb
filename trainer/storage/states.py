"""States of a run to go on from: written whole or not at all, and read only if nothing of them was
damaged. Which run they belong to is `run.py`'s business."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch

from .flush import flush_folder
from .hashing import sha256_of

logger = logging.getLogger(__name__)

NUM_KEPT = 2
"""The older one is for the case that the newest is damaged, and given up where there is no room."""
NUM_NEEDED = 2
"""On the disk at once: the newest, and the next while it is written."""
_NAME = re.compile(r"step(\d+)-[0-9a-f]{16}\.pt")


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """The new state's file, on the disk under a name that holds its own checksum. Only then the
    oldest goes. OSError leaves everything as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / ".state.part"
    try:
        with part.open("wb") as file:
            hashed = _HashedFile(file)
            _write(state, hashed)
            file.flush()
            os.fsync(file.fileno())
        path = part.replace(folder / f"step{step:06d}-{hashed.checksum()}.pt")
    finally:
        part.unlink(missing_ok=True)
    flush_folder(folder)
    for old in _newest_first(folder)[NUM_KEPT:]:
        old.unlink()
    return path


def load_newest(
    folders: Sequence[Path], *, up_to: int, mmap: bool
) -> tuple[Path, dict[str, Any]] | None:
    """Of the states in all these folders up to a step, the file and content of the newest that is
    whole; None without one. Damaged ones are put aside. With `mmap` the tensors stay in the file
    until they are copied elsewhere."""
    for path in _newest_first(*folders):
        if _step(path) > up_to:
            continue
        if sha256_of(path)[:16] in path.name:
            state: dict[str, Any] = torch.load(
                str(path), map_location="cpu", weights_only=True, mmap=mmap
            )
            return path, state
        logger.warning("The state '%s' is damaged. It is not used, and kept as '%s'.",
                       path, put_aside(path, ".damaged").name)  # fmt: skip
    return None


def put_aside(path: Path, suffix: str) -> Path:
    """Give a state that cannot be used another name, which is no state's; gives that."""
    return path.replace(path.with_suffix(suffix))


def exist(folders: Sequence[Path], *, up_to: int) -> bool:
    """Whether there is any state to try up to a step."""
    return newest_step(folders, up_to=up_to) > 0


def newest_step(folders: Sequence[Path], *, up_to: float = math.inf) -> int:
    """The step of the newest state in all these folders up to a step; 0 without one."""
    return max((s for s in map(_step, _newest_first(*folders)) if s <= up_to), default=0)


def remove(folder: Path, *, keep: int) -> None:
    """Remove all but the newest states and what an interrupted write left, but not what was put
    aside."""
    for path in [*_newest_first(folder)[keep:], *folder.glob(".*.part")]:
        path.unlink()


def count(folder: Path) -> int:
    """How many states there are."""
    return len(_newest_first(folder))


def _newest_first(*folders: Path) -> list[Path]:
    paths = [path for folder in folders for path in folder.glob("*.pt")]
    return sorted(filter(_step, paths), key=_step, reverse=True)


def _step(path: Path) -> int:
    """The step of a state; 0 for other files."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


class _HashedFile:
    """A file to write to from beginning to end, and the checksum of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def checksum(self) -> str:
        return self._digest.hexdigest()[:16]


def _write(state: dict[str, Any], file: _HashedFile) -> None:
    try:
        torch.save(state, file)  # type: ignore[arg-type]  # it asks for these methods only
    except RuntimeError as error:
        # torch closes its archive even where writing failed, and hides the reason by failing again.
        raise (error.__context__ or error) from None
