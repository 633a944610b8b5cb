"""Lists the runs in a folder with their status and size, and deletes them. Checkpoints and
embeddings are never deleted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..storage import states
from ..storage.listing import all_below
from ..storage.locks import LOCK, is_locked, locked
from .disk_space import format_bytes
from .manifest import MANIFEST, STATES, numerics_of, read
from .manifest_check import FINISHED

logger = logging.getLogger(__name__)

ALL = "all"
KEPT_ENDINGS = (".safetensors", ".ckpt")
HEADINGS = ("ID", "name", "status", "started", "steps", "numerics", "size", "states")


@dataclass(frozen=True, slots=True)
class Entry:
    """One run."""

    folder: Path
    name: str
    """The name of its files (output.name)."""
    status: str
    started: datetime | None
    """None: the manifest is damaged."""
    steps: int | None
    """Planned steps. None: the manifest is damaged."""
    numerics: int
    size: int
    """Size of the folder in bytes."""
    size_of_states: int
    """Size of its states in bytes, usable or not."""
    files: Sequence[Path]
    """The checkpoints and embeddings it wrote."""


def entries(runs: Path) -> list[Entry]:
    """The runs in a folder, oldest first. Raises ValueError if the folder does not exist."""
    found = map(_entry, _run_folders(runs))
    return sorted(found, key=lambda entry: entry.started.timestamp() if entry.started else 0)


def table(found: Sequence[Entry]) -> str:
    """A line per run, and below it one per file of the run."""
    cells = [HEADINGS, *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    for number, entry in reversed(list(enumerate(found, start=1))):
        lines[number + 1 : number + 1] = [
            f"    {path}{'' if path.is_file() else ' (missing)'}" for path in entry.files
        ]
    return "\n".join(lines)


def delete(runs: Path, ids: Sequence[str]) -> int:
    """Delete these runs. Return the number of bytes freed. Nothing is deleted if an ID does not
    exist (ValueError) or a run is in use (RuntimeError)."""
    folders = _folders(runs, ids)
    before = sum(map(_size, folders))
    with _all_locked(folders):
        for folder in folders:
            _clear(folder, keep=(MANIFEST, LOCK))
            # Last: without a manifest, what is left would not be listed.
            (folder / MANIFEST).unlink(missing_ok=True)
    for folder in folders:
        (folder / LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # it contains a checkpoint
            folder.rmdir()
    return before - sum(map(_size, folders))


def delete_states(runs: Path, ids: Sequence[str]) -> int:
    """Delete the states of these runs, or with ["all"] those of every run that is not in use.
    Return the number of bytes freed. Raises the same errors as `delete`."""
    folders = _folders(runs, ids) if list(ids) != [ALL] else _idle(runs)
    with _all_locked(folders):
        before = sum(map(_size, folders))
        for folder in folders:
            states.remove_all(folder / STATES)
        return before - sum(map(_size, folders))


def _entry(folder: Path) -> Entry:
    manifest = read(folder, whole=True)
    config, result = manifest.get("config", {}), manifest.get("result") or {}
    files = [file["path"] for file in result.get("files", {}).values()]
    # Older intermediate files are deleted as newer ones are saved, so that none of them is missing.
    intermediate = [path for path in manifest.get("intermediate", []) if Path(path).is_file()]
    paths = [*intermediate, *files, *result.get("best", {}).values()]
    return Entry(
        folder=folder,
        name=config.get("output", {}).get("name", "?"),
        status=_status(folder, manifest),
        started=datetime.fromisoformat(manifest["started"]) if manifest else None,
        steps=config.get("steps"),
        numerics=numerics_of(manifest),
        size=_size(folder),
        size_of_states=_size(folder / STATES),
        files=[Path(path) for path in dict.fromkeys(paths)],
    )


def _status(folder: Path, manifest: dict[str, Any]) -> str:
    if is_locked(folder):
        return "in use"
    if not manifest:
        return "manifest missing or damaged"
    if manifest["status"] == FINISHED:
        result = manifest["result"]
        if result["steps"] == result["total_steps"]:
            return "finished"
        return f"finished early, at step {result['steps']} of {result['total_steps']}"
    if step := states.newest_step([folder / STATES]):
        return f"stopped at step {step} of {manifest['config']['steps']}"
    return "stopped without a state"


def _cells(entry: Entry) -> list[str]:
    return [
        entry.folder.name,
        entry.name,
        entry.status,
        f"{entry.started.astimezone():%Y-%m-%d %H:%M}" if entry.started else "?",
        str(entry.steps or "?"),
        str(entry.numerics),
        format_bytes(entry.size),
        format_bytes(entry.size_of_states) if entry.size_of_states else "-",
    ]


def _run_folders(runs: Path) -> list[Path]:
    if not runs.is_dir():
        raise ValueError(
            f"The folder '{runs}' does not exist. Give the folder where runs are kept: 'runs' in "
            "the output folder, unless --runs was used."
        )
    return [folder for folder in sorted(runs.iterdir()) if _is_run(folder)]


def _is_run(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or (folder / STATES).is_dir()


def _folders(runs: Path, ids: Sequence[str]) -> list[Path]:
    existing = {folder.name for folder in _run_folders(runs)}
    if unknown := [run_id for run_id in ids if run_id not in existing]:
        known = [entry.folder.name for entry in entries(runs)]
        raise ValueError(
            f"There is no run {', '.join(unknown)} in '{runs}', so nothing was deleted. Existing "
            f"runs: {', '.join(known) or 'none'}."
        )
    return [runs / run_id for run_id in dict.fromkeys(ids)]


def _idle(runs: Path) -> list[Path]:
    idle = []
    for folder in _run_folders(runs):
        if is_locked(folder):
            logger.warning("The run %s is in use, so its states are kept.", folder.name)
        else:
            idle.append(folder)
    return idle


@contextmanager
def _all_locked(folders: Sequence[Path]) -> Iterator[None]:
    with ExitStack() as locks:
        for folder in folders:
            locks.enter_context(locked(folder))
        yield


def _clear(folder: Path, keep: Sequence[str] = ()) -> None:
    """Delete the contents of a folder, except the files in it named `keep`, and checkpoints at any
    depth."""
    kept = {folder / name for name in keep}
    for path in all_below(folder):
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # it contains a kept file
                path.rmdir()
        elif path not in kept and path.suffix not in KEPT_ENDINGS:
            path.unlink()


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in all_below(folder) if path.is_file())
