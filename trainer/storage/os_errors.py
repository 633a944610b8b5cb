"""What errors of the file system mean, and what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

ADVICE = {
    errno.EACCES: "'{path}' cannot be used, because permission is missing. Change the permissions "
    "of its folder, or choose another folder.",
    errno.EPERM: "'{path}' cannot be used, because permission is missing. Change the permissions "
    "of its folder, or choose another folder.",
    errno.EROFS: "'{path}' cannot be written, because its disk is read-only. Choose another "
    "folder.",
    errno.ENOSPC: "'{path}' cannot be written, because its disk is full. Free some space, then run "
    "the same again.",
    errno.ENOTDIR: "'{path}' cannot be used, because a part of its path is a file, not a folder. "
    "Choose another folder.",
    errno.ENAMETOOLONG: "'{path}' cannot be used, because it is too long for this system. Choose a "
    "shorter name or another folder.",
}
"""By the system's number of the error."""
NO_MORE_FILES = (
    "'{path}' cannot be written, because its disk has space, but no room for more files. Delete "
    "files that you do not need, then run the same again."
)

NO_READER = "The program that reads this output has ended. Run the same again without it."


def explain(error: OSError) -> str:
    """The error as one line that says what to do, if the system says which file it is about."""
    if error.errno == errno.EPIPE:
        return NO_READER
    text = ADVICE.get(error.errno or 0)
    if not text or not isinstance(error.filename, str):
        return str(error)
    if error.errno == errno.ENOSPC and _has_no_more_files(Path(error.filename)):
        text = NO_MORE_FILES
    return text.format(path=error.filename)


def _has_no_more_files(path: Path) -> bool:
    """Whether the disk of a file can hold as many files as there are."""
    if not hasattr(os, "statvfs"):  # Windows
        return False
    folder = next((each for each in path.absolute().parents if each.is_dir()), Path("/"))
    found = os.statvfs(folder)
    return found.f_files > 0 and found.f_favail == 0
