"""Sync the entries of folders, so that new names survive a power cut."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)


def make_folder(folder: Path) -> None:
    """Create a folder, and those above it that are missing, so that they survive a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Write the entries of a folder to the disk. Does nothing where the system cannot, and only
    warns if the disk fails: the files themselves are complete."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC):
            logger.warning(
                "What was last saved in '%s' may be lost if the power fails now, because the disk "
                "could not write the folder: %s", folder, error.strerror,
            )  # fmt: skip
