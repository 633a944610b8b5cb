"""A folder for one process at a time."""

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
    """Inside, nobody else gets in; RuntimeError names the process that is in already.

    The system itself holds the lock and drops it when its process ends, however that happens, so
    that none is ever left behind. The file holds the process's number for people to read.
    """
    with (folder / LOCK).open("a+") as file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise RuntimeError(
                f"The process {file.read().strip()} is working on this same run in {folder}. "
                "Wait until it is done, or stop it."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process is in."""
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
        # Far behind the end: Windows would keep others from reading what is locked.
        file.seek(1 << 30)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
