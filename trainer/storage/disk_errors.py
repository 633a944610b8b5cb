"""Errors of disks in words: which file, what happened, and what to do."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_PATH = 259 if os.name == "nt" else sys.maxsize
"""Windows says of a longer path that it does not exist, unless long paths are allowed."""
_DENIED = (
    "'{}' cannot be used, because access is denied. Change the permissions of the file or of its "
    "folder, or close the program that keeps it open, then run the same again."
)
_FULL = "No space is left on the disk of '{}'. Free some space there, then run the same again."
_NO_MORE_FILES = (
    "The disk of '{}' has space, but no room for more files. Delete files there that you do not "
    "need, then run the same again."
)
_TOO_LONG = (
    "'{}' cannot be used, because it is too long for this system. Choose a shorter name or another "
    "folder."
)
_MESSAGES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: "The disk of '{}' is read-only. Make it writable, or choose another folder.",
    errno.ENOTDIR: "'{}' cannot be used, because a part of its path is a file, not a folder. "
    "Choose another folder.",
    errno.ENAMETOOLONG: _TOO_LONG,
}
"""By the system's number of the error."""
_OTHER = "'{}' cannot be used: {}. Check the file and its disk, then run the same again."
_NO_READER = "The program that reads this output has ended. Run the same again without it."


@contextmanager
def explained() -> Iterator[None]:
    """Let errors of the system about a file say what to do. Others, and those with a message of
    ours, pass unchanged."""
    try:
        yield
    except OSError as error:
        is_ours = error.filename is None or not error.strerror
        if is_ours and error.errno != errno.EPIPE:
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
    form = _MESSAGES.get(error.errno or errno.EIO, _OTHER)
    if form == _FULL and _has_no_more_files(Path(path)):
        form = _NO_MORE_FILES
    elif path and len(os.path.abspath(path)) > MAX_PATH:
        form = _TOO_LONG
    elif error.errno == errno.EPIPE:
        form = _NO_READER
    found = type(error)(form.format(path, error.strerror))
    found.errno = error.errno
    return found


def _has_no_more_files(path: Path) -> bool:
    """Whether the disk of a file has as many files as it can have."""
    if not hasattr(os, "statvfs"):  # Windows
        return False
    folder = next((each for each in path.absolute().parents if each.is_dir()), Path("/"))
    found = os.statvfs(folder)
    return found.f_files > 0 and found.f_favail == 0
