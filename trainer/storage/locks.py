"""Locks of folders, so that one process at a time works in them, and of unfinished files, so that
those of killed processes can be told from those that are being written.

filelock is not used, since the error below could not name the process: releases up to 3.29 empty
the lock file at every attempt, even a refused one, and all of them keep others from reading it on
Windows while it is locked.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from .disk_errors import naming

logger = logging.getLogger(__name__)

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
    file = path.open("a+b", buffering=0)
    try:
        _lock_or_refuse(file, folder)
        with suppress(OSError):  # people can do without, and a full disk does not matter to a lock
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
        yield
    finally:
        with suppress(OSError):
            file.close()


def _lock_or_refuse(file: IO[bytes], folder: Path) -> None:
    try:
        with naming(folder / LOCK):  # such as a network disk without locks
            _lock(file)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise RuntimeError(
            f"Process {file.read().decode().strip()} is already working on this run in {folder}. "
            "Wait until it finishes, or stop it."
        ) from None


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of this folder. Creates no lock file."""
    try:
        with (folder / LOCK).open("rb") as file:
            _lock(file)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):
        return True
    return False


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Create a folder, or take an abandoned one, and lock it. It is deleted at the end."""
    with ExitStack() as stack:
        while True:
            folder.mkdir(exist_ok=True)
            # Another process may be about to delete it, as long as it is not locked.
            with suppress(RuntimeError, FileNotFoundError):
                stack.enter_context(locked(folder))
                if (folder / LOCK).exists():
                    break
        try:
            yield
        finally:
            is_empty = _empty_or_warn(folder)
    if is_empty:
        shutil.rmtree(folder, ignore_errors=True)  # Windows does not delete a file that is open


def delete_abandoned_folder(folder: Path) -> None:
    """Delete an `own_folder` of a killed process. Other processes' folders stay, and those of other
    programs."""
    with suppress(RuntimeError, OSError):
        if not (folder / LOCK).is_file():
            return
        with locked(folder):
            _empty(folder)
        _delete_rest(folder)


def _empty_or_warn(folder: Path) -> bool:
    """Only warn, because what is left has been written elsewhere, or could not be written."""
    try:
        _empty(folder)
        return True
    except OSError as error:
        logger.warning("The unfinished files in '%s' could not be deleted (%s). The next run into "
                       "its folder deletes them.", folder, error.strerror)  # fmt: skip
        return False


def _empty(folder: Path) -> None:
    """Delete what a locked folder contains, the lock last: a folder without one looks like another
    program's. Then delete the folder, if the system deletes a lock that is open."""
    for path in folder.iterdir():
        if path.name != LOCK:
            path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


if sys.platform == "win32":
    import msvcrt

    @contextmanager
    def held(path: Path) -> Iterator[None]:
        """Inside, `delete_abandoned` leaves this file alone, which is created if necessary."""
        yield  # Windows does not delete files that are open

    def delete_abandoned(path: Path) -> None:
        """Delete a file, unless a process holds it."""
        with suppress(FileNotFoundError, PermissionError):
            path.unlink()

    def _delete_rest(folder: Path) -> None:
        (folder / LOCK).unlink()  # It was open. If another process has it now, this fails.
        folder.rmdir()

    def _lock(file: IO[bytes]) -> None:
        # Lock a byte far past the end: Windows blocks reading of a locked range.
        file.seek(1 << 30)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    @contextmanager
    def held(path: Path) -> Iterator[None]:
        """Inside, `delete_abandoned` leaves this file alone, which is created if necessary."""
        while True:
            with path.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if path.exists():  # not deleted just before it was locked
                    yield
                    return

    def delete_abandoned(path: Path) -> None:
        """Delete a file, unless a process holds it."""
        with suppress(FileNotFoundError, PermissionError, BlockingIOError), path.open("rb") as file:
            _lock(file)
            path.unlink()

    def _delete_rest(folder: Path) -> None:
        """What could not be deleted while it was locked: nothing."""

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
