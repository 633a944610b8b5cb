"""What is kept of the runs in a folder, how much room it takes, and how it is deleted. Checkpoints
and embeddings never are."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..storage import json_files, states
from ..storage.locks import LOCK, is_locked, locked
from . import numerics
from .disk_space import format_bytes
from .shorter_runs import MANIFEST, STATES

logger = logging.getLogger(__name__)

ALL = "all"
KEPT_ENDINGS = (".safetensors", ".ckpt")
HEADINGS = ("ID", "name", "status", "begun", "steps", "numerics", "size", "states")


@dataclass(frozen=True, slots=True)
class Entry:
    """One run."""

    folder: Path
    name: str
    """As its files are called."""
    status: str
    begun: datetime | None
    """None where the manifest cannot be read, as with the number of steps."""
    steps: int | None
    numerics: int
    size: int
    """Bytes of all that is in its folder."""
    size_of_states: int
    """Bytes of its states, usable or not."""
    files: Sequence[Path]
    """The checkpoints and embeddings that it wrote."""


def entries(runs: Path) -> list[Entry]:
    """The runs in a folder, the one begun first first. ValueError if there is no such folder."""
    found = map(_entry, _run_folders(runs))
    return sorted(found, key=lambda entry: entry.begun.timestamp() if entry.begun else 0)


def table(found: Sequence[Entry]) -> str:
    """A line for each run, and below it one for each of its files."""
    cells = [HEADINGS, *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    for number, entry in reversed(list(enumerate(found, start=1))):
        lines[number + 1 : number + 1] = [
            f"    {path}{'' if path.is_file() else ' (gone)'}" for path in entry.files
        ]
    return "\n".join(lines)


def delete(runs: Path, ids: Sequence[str]) -> int:
    """Delete all that is kept of these runs; gives how many bytes that freed. ValueError for an ID
    that there is not, RuntimeError for a run that is being worked on: then nothing is deleted."""
    folders = _folders(runs, ids)
    before = sum(map(_size, folders))
    with _all_locked(folders):
        for folder in folders:
            _clear(folder, keep=(MANIFEST, LOCK))
            (folder / MANIFEST).unlink(missing_ok=True)  # last, or nothing would list the rest
    for folder in folders:
        (folder / LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # there is a checkpoint in it
            folder.rmdir()
    return before - sum(map(_size, folders))


def delete_states(runs: Path, ids: Sequence[str]) -> int:
    """Delete the states of these runs, or of ["all"] but those that are being worked on; gives how
    many bytes that freed. Else it raises what `delete` does."""
    folders = _folders(runs, ids) if list(ids) != [ALL] else _idle(runs)
    with _all_locked(folders):
        before = sum(map(_size, folders))
        for folder in folders:
            _clear(folder / STATES)
        return before - sum(map(_size, folders))


def _entry(folder: Path) -> Entry:
    manifest = json_files.read(folder / MANIFEST)
    config, result = manifest.get("config", {}), manifest.get("result") or {}
    files = [file["path"] for file in result.get("files", {}).values()]
    paths = [*manifest.get("intermediate", []), *files, *result.get("best", {}).values()]
    return Entry(
        folder=folder,
        name=config.get("output", {}).get("name", "?"),
        status=_status(folder, manifest),
        begun=datetime.fromisoformat(manifest["started"]) if manifest else None,
        steps=config.get("steps"),
        numerics=manifest.get(numerics.KEY, 0),
        size=_size(folder),
        size_of_states=_size(folder / STATES),
        files=[Path(path) for path in dict.fromkeys(paths)],
    )


def _status(folder: Path, manifest: dict[str, Any]) -> str:
    if is_locked(folder):
        return "being worked on"
    if not manifest:
        return "manifest missing or damaged"
    if manifest["status"] == "finished":
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
        f"{entry.begun.astimezone():%Y-%m-%d %H:%M}" if entry.begun else "?",
        str(entry.steps or "?"),
        str(entry.numerics),
        format_bytes(entry.size),
        format_bytes(entry.size_of_states) if entry.size_of_states else "-",
    ]


def _run_folders(runs: Path) -> list[Path]:
    if not runs.is_dir():
        raise ValueError(
            f"There is no folder '{runs}'. Name the one where runs are kept: 'runs' in the output "
            "folder, unless --runs named another."
        )
    return [folder for folder in sorted(runs.iterdir()) if _is_run(folder)]


def _is_run(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or (folder / STATES).is_dir()


def _folders(runs: Path, ids: Sequence[str]) -> list[Path]:
    there = {folder.name for folder in _run_folders(runs)}
    if unknown := [one for one in ids if one not in there]:
        known = [entry.folder.name for entry in entries(runs)]
        raise ValueError(
            f"There is no run {', '.join(unknown)} in '{runs}', so nothing was deleted. There are: "
            f"{', '.join(known) or 'none'}."
        )
    return [runs / one for one in dict.fromkeys(ids)]


def _idle(runs: Path) -> list[Path]:
    idle = []
    for folder in _run_folders(runs):
        if is_locked(folder):
            logger.warning("The run %s is being worked on, and keeps its states.", folder.name)
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
    """Delete all in a folder but some of its files, and checkpoints wherever they lie in it."""
    kept = {folder / name for name in keep}
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # something in it is kept
                path.rmdir()
        elif path not in kept and path.suffix not in KEPT_ENDINGS:
            path.unlink()


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
