"""Training states, from which an interrupted run resumes. A state is written completely or not at
all, and a damaged one is never loaded. `runs/run.py` knows which run a state belongs to."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch

from .disk_errors import naming
from .flush import flush_folder, make_folder
from .hashing import sha256_of
from .listing import matching

logger = logging.getLogger(__name__)

NUM_KEPT = 2
"""States kept per run. The older one is a fallback in case the newest is damaged; it is deleted if
the disk is short of space."""
NUM_NEEDED = 2
"""States that must fit on the disk at once: the newest, and the next one while it is written."""
_NAME = re.compile(r"step(\d+)-[0-9a-f]{16}\.pt")


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write a state to a file whose name contains its checksum, and return the path. The oldest
    state is deleted only after that. If OSError is raised, nothing has changed."""
    make_folder(folder)
    part = folder / ".state.part"
    with naming(folder):
        try:
            with part.open("wb") as file:
                hashed = _HashedFile(file)
                _write(state, hashed)
                file.flush()
                os.fsync(file.fileno())
            path = part.replace(folder / f"step{step:06d}-{hashed.checksum()}.pt")
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    flush_folder(folder)
    for old in _newest_first(folder)[NUM_KEPT:]:
        old.unlink()
    return path


def load_newest(
    folders: Sequence[Path], *, up_to: int, mmap: bool
) -> tuple[Path, dict[str, Any]] | None:
    """Return the path and content of the newest undamaged state up to a step in these folders;
    None if there is none. Damaged ones are renamed. Raises ValueError for one that others wrote.
    With `mmap`, tensors are read from the file only when they are used."""
    for path in _newest_first(*folders):
        if _step(path) > up_to:
            continue
        if sha256_of(path)[:16] in path.name:
            return path, _load(path, mmap=mmap)
        logger.warning("The state '%s' is damaged and cannot be used. It was renamed to '%s'.",
                       path, put_aside(path, ".damaged").name)  # fmt: skip
    return None


def put_aside(path: Path, suffix: str) -> Path:
    """Rename an unusable state, so that it is no longer found as one. Returns the new path."""
    return path.replace(path.with_suffix(suffix))


def exist(folders: Sequence[Path], *, up_to: int) -> bool:
    """Whether any of these folders holds a state up to a step. It may be damaged."""
    return newest_step(folders, up_to=up_to) > 0


def newest_step(folders: Sequence[Path], *, up_to: float = math.inf) -> int:
    """Return the step of the newest state up to a step in these folders; 0 if there is none."""
    return max((s for s in map(_step, _newest_first(*folders)) if s <= up_to), default=0)


def remove(folder: Path, *, keep: int) -> None:
    """Delete all but the `keep` newest states, and what an interrupted write left behind. Renamed
    states stay."""
    for path in [*_newest_first(folder)[keep:], *matching(folder, ".*.part")]:
        path.unlink()


def remove_all(folder: Path) -> None:
    """Delete the states, also renamed ones, and what an interrupted write left behind. Other files
    stay: the folder may be a link."""
    for path in matching(folder):
        if _NAME.fullmatch(path.with_suffix(".pt").name) or path.suffix == ".part":
            path.unlink()


def count(folder: Path) -> int:
    """Return the number of states in a folder."""
    return len(_newest_first(folder))


def _newest_first(*folders: Path) -> list[Path]:
    paths = [path for folder in folders for path in matching(folder, "*.pt")]
    return sorted(filter(_step, paths), key=_step, reverse=True)


def _step(path: Path) -> int:
    """Return the step of a state file; 0 for other files."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def _load(path: Path, *, mmap: bool) -> dict[str, Any]:
    """Raises ValueError for a file that this program did not write: opening it runs no code."""
    try:
        with naming(path):
            state = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mmap)
    except (UnpicklingError, LookupError, TypeError, ValueError, AttributeError, EOFError) as error:
        raise _foreign(path) from error
    except RuntimeError as error:  # which is also that of too little memory
        if not any(words in str(error) for words in ("magic number", "PytorchStreamReader")):
            raise
        raise _foreign(path) from error
    if not isinstance(state, dict):
        raise _foreign(path)
    return state


def _foreign(path: Path) -> ValueError:
    return ValueError(
        f"The state '{path}' holds something else than the state of a run, so it is not opened. "
        "Delete it, then run the same again."
    )


class _HashedFile:
    """A file that computes a checksum of everything written to it. Only for writing in order."""

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
        torch.save(state, file)  # type: ignore[arg-type]  # needs only these methods
    except RuntimeError as error:
        # After a failed write torch still closes its archive, fails again and hides the cause.
        raise (error.__context__ or error) from None
