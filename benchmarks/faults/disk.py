"""What a power cut may leave of a run's files, from the record of its operations.

The model is what systems promise, and no more: the bytes of a file survive once the file is synced,
and a name, or that it is gone, survives once its folder is synced. Anything else may or may not."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from .preload import Operation

BLOCK = 512
"""Bytes that a disk writes at once."""
DURABLE = (".safetensors", ".pt")
"""The endings of files that a run reports as saved."""


class Names(Enum):
    """Which changes of names that were not synced are on the disk."""

    NONE = "none"
    FIRST = "the first ones"
    ANY = "any"
    ALL = "all"


class Bytes(Enum):
    """What is on the disk of bytes that were not synced."""

    NONE = "none"
    ZEROS = "zeros"
    FIRST = "the first ones"
    ALL = "all"


@dataclass(frozen=True)
class Kind:
    """A kind of state that a power cut may leave."""

    name: str
    names: Names
    bytes: Bytes


KINDS = (
    Kind("only what was synced", Names.NONE, Bytes.NONE),
    Kind("all names, but no bytes that were not synced", Names.ALL, Bytes.NONE),
    Kind("all names, with zeros in place of such bytes", Names.ALL, Bytes.ZEROS),
    Kind("all names, with the first such bytes", Names.ALL, Bytes.FIRST),
    Kind("all bytes, but only names that were synced", Names.NONE, Bytes.ALL),
    Kind("the first changes of names and bytes", Names.FIRST, Bytes.FIRST),
    Kind("any changes of names, with the first bytes", Names.ANY, Bytes.FIRST),
)


@dataclass(frozen=True)
class _Change:
    """Of names: what a name then stands for, None if nothing. A rename has two names."""

    at: int
    entries: tuple[tuple[str, int | None], ...]


Write = tuple[int, int, bytes | None]
"""When, where, and which bytes; None for the file becoming empty."""


@dataclass
class _File:
    """A file by its writes; `at` is the number of the operation."""

    writes: list[Write] = field(default_factory=list)
    syncs: list[int] = field(default_factory=list)


FOLDER = -1
"""What a name stands for that is not a file."""
State = Mapping[str, bytes | None]
"""The content of each file by its path; None for folders."""


class Recording:
    """All changes of a run, in order."""

    def __init__(
        self, root: Path, before: Path, operations: Sequence[Operation], data: Path
    ) -> None:
        """`before`: what `root` held at the start. `data`: the written bytes."""
        self.length = len(operations)
        self._root = str(root)
        self._files: list[_File] = []
        self._changes: list[_Change] = []
        self._folder_syncs: dict[str, list[int]] = {}
        self._names: dict[str, int] = {self._root: FOLDER}
        self._open: dict[int, int] = {}
        self._load(before)
        self._initial = dict(self._names)
        with data.open("rb") as self._data:
            for operation in operations:
                if operation.result >= 0:
                    self._apply(operation)

    def _load(self, before: Path) -> None:
        for path in sorted(before.rglob("*")):
            name = os.path.join(self._root, path.relative_to(before))
            self._names[name] = FOLDER if path.is_dir() else self._new_file()
            if path.is_file():
                self._files[-1] = _File([(0, 0, path.read_bytes())], [0])

    def _new_file(self) -> int:
        self._files.append(_File())
        return len(self._files) - 1

    def _apply(self, o: Operation) -> None:
        if o.call == "write":
            self._write(o, self._data.read(o.result))
        elif not o.path.startswith(self._root):
            pass
        elif o.call in ("create", "open"):
            self._opened(o)
        elif o.call == "fsync":
            known = self._names.get(o.path) == FOLDER
            syncs = (
                self._folder_syncs.setdefault(o.path, [])
                if known
                else self._files[self._open[o.file]].syncs
            )
            syncs.append(o.number)
        elif o.call == "mkdir":
            self._change(o.number, (o.path, FOLDER))
        elif o.call in ("unlink", "rmdir"):
            self._change(o.number, (o.path, None))
        elif o.call == "link":
            self._change(o.number, (o.other, self._names[o.path]))
        elif o.call == "rename":
            self._change(o.number, (o.path, None), (o.other, self._names[o.path]))

    def _opened(self, o: Operation) -> None:
        if o.path not in self._names:
            self._change(o.number, (o.path, self._new_file()))
        found = self._names[o.path]
        self._open[o.file] = found
        if found != FOLDER and o.call == "create" and o.where & os.O_TRUNC:
            self._files[found].writes.append((o.number, 0, None))

    def _write(self, o: Operation, content: bytes) -> None:
        self._files[self._open[o.file]].writes.append((o.number, o.where, content))

    def _change(self, at: int, *entries: tuple[str, int | None]) -> None:
        self._changes.append(_Change(at, entries))
        for name, target in entries:
            self._names[name] = target  # type: ignore[assignment]
            if target is None:
                del self._names[name]

    def cuts(self) -> list[int]:
        """The operations after which something differs: changes of names, syncs, and the first and
        the middle of the writes to each file between two syncs."""
        found = {change.at for change in self._changes}
        found.update(at for syncs in self._folder_syncs.values() for at in syncs)
        for file in self._files:
            found.update(file.syncs)
            for start, end in zip([0, *file.syncs], [*file.syncs, self.length + 1], strict=True):
                between = [at for at, _, _ in file.writes if start < at < end]
                found.update(between[:1] + between[len(between) // 2 :][:1] + between[-1:])
        return sorted(found - {0})

    def state(self, cut: int, kind: Kind, rng: random.Random) -> State:
        """What the disk may hold if the power fails after the operation `cut`."""
        names = self._names_after(cut, kind.names, rng)
        contents = {
            target: self._content(target, cut, kind.bytes, rng)
            for target in {*names.values()} - {FOLDER}
        }
        return {name: contents.get(target) for name, target in sorted(names.items())}

    def _names_after(self, cut: int, which: Names, rng: random.Random) -> dict[str, int]:
        issued = [change for change in self._changes if change.at <= cut]
        is_synced = [self._is_synced(change, cut) for change in issued]
        loose = [number for number, synced in enumerate(is_synced) if not synced]
        if which is Names.FIRST:
            kept = set(loose[: rng.randint(0, len(loose))])
        elif which is Names.ANY:
            kept = {number for number in loose if rng.random() < 0.5}
        else:
            kept = set(loose if which is Names.ALL else ())
        names = dict(self._initial)
        for number, change in enumerate(issued):
            if is_synced[number] or number in kept:
                for name, target in change.entries:
                    _set(names, name, target)
        return {name: target for name, target in names.items() if self._has_folder(name, names)}

    def _is_synced(self, change: _Change, cut: int) -> bool:
        folders = {os.path.dirname(name) for name, _ in change.entries}
        return all(
            any(change.at < at <= cut for at in self._folder_syncs.get(folder, ()))
            for folder in folders
        )

    def _has_folder(self, name: str, names: Mapping[str, int]) -> bool:
        while name != self._root:
            name = os.path.dirname(name)
            if names.get(name) != FOLDER:
                return False
        return True

    def _content(self, target: int, cut: int, which: Bytes, rng: random.Random) -> bytes:
        file = self._files[target]
        synced = max((at for at in file.syncs if at <= cut), default=0)
        writes = [write for write in file.writes if write[0] <= cut]
        firm = [write for write in writes if write[0] <= synced]
        loose = [write for write in writes if write[0] > synced]
        if which is Bytes.ALL:
            return _written(writes)
        if which is Bytes.ZEROS:
            return _written(
                [*firm, *((at, where, data and bytes(len(data))) for at, where, data in loose)]
            )
        if which is Bytes.NONE or not loose:
            return _written(firm)
        torn = loose[: rng.randint(0, len(loose))]
        if torn:
            at, where, data = torn[-1]
            torn[-1] = at, where, data and data[: rng.randint(0, len(data)) // BLOCK * BLOCK]
        return _written([*firm, *torn])

    def saved(self, cut: int) -> set[str]:
        """The paths of files that the run has reported as saved, and has not begun to delete: those
        whose folder was synced after they got their names."""
        found: set[str] = set()
        for change in self._changes:
            for name, target in change.entries if change.at <= cut else ():
                if target is None:
                    found.discard(name)
                elif (
                    name.endswith(DURABLE) and ".part" not in name and self._is_synced(change, cut)
                ):
                    found.add(name)
        return found

    def whole(self, name: str) -> bytes:
        """The bytes that a saved file had."""
        target = next(
            t for c in reversed(self._changes) for n, t in c.entries if n == name and t is not None
        )
        return _written(self._files[target].writes)


def _set(names: dict[str, int], name: str, target: int | None) -> None:
    if target is None:
        names.pop(name, None)
    else:
        names[name] = target


def _written(writes: Iterable[Write]) -> bytes:
    content = bytearray()
    for _, where, data in writes:
        if data is None:
            content.clear()
        elif where == len(content):
            content += data
        else:
            content.extend(bytes(max(0, where - len(content))))
            content[where : where + len(data)] = data
    return bytes(content)
