"""Turn names that come over the network into paths inside a given folder. Independent of
ComfyUI."""

from __future__ import annotations

import os
from pathlib import Path

from ..trainer.data.captions import key
from ..trainer.storage.names import fault

MAX_DEPTH = 20
"""Folders inside each other. Python cannot look into a thousand, and ComfyUI's page would not
open."""


def check_name(name: str) -> None:
    """Raises ValueError for a name that is not a plain relative path on every system."""
    faults = [fault(part) for part in name.split("/") if fault(part)]
    if faults:
        raise ValueError(
            f"{name!r} cannot be used as a name: {faults[0]}. Choose one from the menu, or a plain "
            "name."
        )


def inside(root: Path, name: str) -> Path:
    """The path of that name below `root`. Raises ValueError if it leads out of `root`, by itself or
    through a link."""
    check_name(name)
    path = root / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise ValueError(
            f"{name!r} is a link that leads out of {root}. Copy the files there instead."
        )
    return path


def existing_name(folder: Path, name: str) -> str:
    """The name of an entry of the folder that is the same name on systems that ignore case, or else
    the given name."""
    names = os.listdir(folder) if folder.is_dir() else []
    return name if name in names else next((n for n in names if key(n) == key(name)), name)


def subfolders(root: Path) -> list[str]:
    """All folders below `root` except hidden ones and those deeper than `MAX_DEPTH`, sorted, with
    forward slashes. Links are listed but not followed."""
    found = []
    for folder, names, _ in os.walk(root):
        if len(Path(folder).relative_to(root).parts) == MAX_DEPTH:
            names.clear()
        names[:] = [name for name in names if not name.startswith(".") and not fault(name)]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in names]
    return sorted(found)


def fingerprint(paths: list[Path]) -> str:
    """A text that changes if one of these files, or a file in one of these folders, is added,
    removed or written."""
    facts = []
    for path in paths:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                stat = file.stat()
                facts.append((str(file), stat.st_size, stat.st_mtime_ns))
    return repr(facts)
