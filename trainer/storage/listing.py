"""What folders hold. `Path.glob` and `os.walk` leave out without a word what they cannot read, and
states, class images or runs would seem not to exist."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path


def matching(folder: Path, pattern: str = "*") -> list[Path]:
    """What a folder holds under names that match a pattern such as "*.png", sorted by name. Empty
    if the folder does not exist. Raises OSError if it cannot be read."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(fnmatch.filter(names, pattern))]


def all_below(folder: Path) -> Iterator[Path]:
    """What a folder and the folders below it hold, the contents of each before the folder itself.
    Links are not followed. Raises OSError if one of them cannot be read."""
    for path in matching(folder):
        if path.is_dir() and not path.is_symlink():
            yield from all_below(path)
        yield path
