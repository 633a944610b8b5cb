"""What reaches the disk, and when."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

HAS_FLUSHED_FOLDERS = os.name == "posix"
"""Windows brings names to the disk by itself."""


@pytest.fixture
def disk_events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on, in their order: "flushed" with the number of bytes of a file that was brought to
    the disk, "named" with the name that a file got, and "flushed names" of a folder."""
    events: list[str] = []
    fsync = os.fsync

    def flush(descriptor: int) -> None:
        fsync(descriptor)
        found = os.fstat(descriptor)
        is_folder = stat.S_ISDIR(found.st_mode)
        events.append("flushed names" if is_folder else f"flushed {found.st_size}")

    monkeypatch.setattr(os, "fsync", flush)
    # Not os.replace: Python 3.10's Path keeps the function that it found at first.
    for place, name in ((os, "link"), (os, "rename"), (Path, "replace")):
        monkeypatch.setattr(place, name, _naming(getattr(place, name), events))
    return events


def _naming(real: Callable[..., object], events: list[str]) -> Callable[..., object]:
    def give_name(old: Path, new: Path) -> object:
        given = real(old, new)
        events.append(f"named {Path(new).name}")
        return given

    return give_name


@pytest.fixture
def safely_written() -> Callable[[Path], list[str]]:
    """The events of a file that no power cut can leave half written under its name."""

    def events(path: Path) -> list[str]:
        names = ["flushed names"] * HAS_FLUSHED_FOLDERS
        return [f"flushed {path.stat().st_size}", f"named {path.name}", *names]

    return events
