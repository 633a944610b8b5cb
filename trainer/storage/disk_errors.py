"""Errors of disks in words: which file, what happened, and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MESSAGES = {
    "No space is left on the disk of '{}'. Free some space there, then run the same again.": (
        errno.ENOSPC,
        errno.EDQUOT,
    ),
    "'{}' cannot be used, because access is denied. Change the permissions of the file or of its "
    "folder, or close the program that keeps it open, then run the same again.": (
        errno.EACCES,
        errno.EPERM,
    ),
    "The disk of '{}' is read-only. Make it writable, or choose another folder.": (errno.EROFS,),
}
_OTHER = "'{}' cannot be used: {}. Check the file and its disk, then run the same again."


@contextmanager
def explained() -> Iterator[None]:
    """Let errors of the system about a file say what to do. Others, and those with a message of
    ours, pass unchanged."""
    try:
        yield
    except OSError as error:
        if error.filename is None or not error.strerror:
            raise
        raise _explained(error) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of the system name this file. A full disk names none, and a temporary file is not
    one that users know."""
    try:
        yield
    except OSError as error:
        number, reason = error.errno or errno.EIO, error.strerror or str(error)
        raise OSError(number, reason, str(path)) from error


def _explained(error: OSError) -> OSError:
    """An error of the same type and number with a message of ours."""
    path = error.filename2 or error.filename
    form = next((text for text, numbers in _MESSAGES.items() if error.errno in numbers), _OTHER)
    found = type(error)(form.format(path, error.strerror))
    found.errno = error.errno
    return found
