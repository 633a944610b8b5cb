"""Settings of a short training, and fixtures that record the order of writes, syncs and renames."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.settings.config import DatasetConfig, OptimizerConfig, OutputConfig, TrainingConfig

HAS_FLUSHED_FOLDERS = os.name == "posix"
"""Windows has no call for it: folder entries cannot be synced there."""


@pytest.fixture
def one_photo_config(
    tiny_checkpoint: Path, draw_photos: Callable[..., Path], tmp_path: Path
) -> TrainingConfig:
    """One step on a single random photo with the tiny checkpoint, into `tmp_path / "out"`."""
    photos = draw_photos(tmp_path / "photos", 1)
    return TrainingConfig(
        base=tiny_checkpoint,
        dataset=DatasetConfig(photos=(photos,), prompt="a dog", resolution=16),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        output=OutputConfig(folder=tmp_path / "out", name="dog"),
        steps=1,
        batch_size=1,
    )


@pytest.fixture
def disk_events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens from now on, in order: "flushed 12" when a file of 12 bytes is synced to disk,
    "named x" when a file is renamed to x, and "flushed names" when a folder is synced."""
    events: list[str] = []
    fsync = os.fsync

    def flush(descriptor: int) -> None:
        fsync(descriptor)
        found = os.fstat(descriptor)
        is_folder = stat.S_ISDIR(found.st_mode)
        events.append("flushed names" if is_folder else f"flushed {found.st_size}")

    monkeypatch.setattr(os, "fsync", flush)
    # Not os.replace: in Python 3.10, Path stores a reference to it at import.
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
    """Return the events that write a file safely: a power cut never leaves it half written."""

    def events(path: Path) -> list[str]:
        names = ["flushed names"] * HAS_FLUSHED_FOLDERS
        return [f"flushed {path.stat().st_size}", f"named {path.name}", *names]

    return events
