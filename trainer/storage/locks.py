"""Folder locks: one process at a time.

filelock is not used, since the error below could not name the process: releases up to 3.29 empty
the lock file at every attempt, even a refused one, and all of them keep others from reading it on
Windows while it is locked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOCK = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder. Raises RuntimeError, naming the process, if another holds the lock.

    The operating system releases the lock when the process ends, even if it is killed, so no stale
    lock is left behind. The lock file contains the process ID for people to read.
    """
    path = folder / LOCK
    if path.is_symlink():
        path.unlink()  # what is written to it would be written elsewhere
    with path.open("a+") as file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise RuntimeError(
                f"Process {file.read().strip()} is already working on this run in {folder}. "
                "Wait until it finishes, or stop it."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of this folder. Creates no lock file."""
    try:
        with (folder / LOCK).open() as file:
            _lock(file)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):
        return True
    return False


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> None:
        # Lock a byte far past the end: Windows blocks reading of a locked range.
        file.seek(1 << 30)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
