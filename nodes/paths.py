"""Names that came over the network, to paths inside a given folder. Knows nothing of ComfyUI."""

from __future__ import annotations

import os
from pathlib import Path

from ..trainer.storage.names import fault


def check_name(name: str) -> None:
    """ValueError for a name that is not a plain relative path on every system."""
    faults = [fault(part) for part in name.split("/") if fault(part)]
    if faults:
        raise ValueError(
            f"{name!r} cannot be used as a name: {faults[0]}. Choose one from the menu, or a plain "
            "name."
        )


def inside(root: Path, name: str) -> Path:
    """The path of that name below `root`. ValueError for one that leads out of it, by itself or
    through a link."""
    check_name(name)
    path = root / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise ValueError(
            f"{name!r} is a link that leads out of {root}. Copy the files there instead."
        )
    return path


def subfolders(root: Path) -> list[str]:
    """Every folder below `root` but hidden ones, with forward slashes, sorted. Links are named, not
    followed."""
    found = []
    for folder, names, _ in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".") and not fault(name)]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in names]
    return sorted(found)


def fingerprint(paths: list[Path]) -> str:
    """Changes when a file among these or in these folders comes, goes or is written to."""
    facts = []
    for path in paths:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                stat = file.stat()
                facts.append((str(file), stat.st_size, stat.st_mtime_ns))
    return repr(facts)
