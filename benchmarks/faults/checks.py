"""What must hold after a run that met a fault."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.soak_checks import files, require_whole
from trainer.runs.manifest import MANIFEST
from trainer.runs.manifest_check import FINISHED

from .preload import Operation
from .scenarios import EARLIER, Place
from .session import Ended

BARE = re.compile(r"\[Errno \d+\]|[A-Za-z ]+Error\b")
"""How messages begin that are the system's or a library's, not ours."""


PUT_ASIDE = ".damaged"
"""What a run calls a state that it found damaged, and does not use."""


@dataclass(frozen=True)
class Result:
    """What a finished run leaves."""

    weights: Mapping[str, Mapping[str, Tensor]]
    """The tensors of each written file, by kind."""
    losses: tuple[float, ...]

    def equals(self, other: Result) -> bool:
        """Bit by bit."""
        return self.losses == other.losses and _equal(self.weights, other.weights)


@dataclass
class Expected:
    """What a run without a fault leaves and says, and what was there before it."""

    result: Result
    names: frozenset[str]
    """Of the files in the output folder, without what differs from run to run."""
    warnings: frozenset[str]
    resumed: int
    """The step after which it resumed."""
    untouched: Mapping[Path, str] = field(default_factory=dict)
    """The hashes of the user's files."""


def expected(place: Place, ended: Ended) -> Expected:
    """Call this after a run without a fault."""
    assert not ended.code, ended
    warnings, untouched = frozenset(ended.warnings), user_files(place)
    return Expected(result_of(place), names(place.out), warnings, ended.resumed, untouched)


def result_of(place: Place) -> Result:
    """Raises ValueError unless the output folder has one finished run."""
    made = [_finished(path) for path in place.out.glob(f"runs/*/{MANIFEST}")]
    found = [(path, content) for path, content in made if content]
    if len(found) != 1:
        raise ValueError(f"{len(found)} finished runs")
    ((folder, content),) = found
    weights = {kind: load_file(file["path"]) for kind, file in content["files"].items()}
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return Result(weights, tuple(json.loads(line)["loss"] for line in lines))


def _finished(path: Path) -> tuple[Path, Any]:
    content = json.loads(path.read_text("utf-8"))
    return path.parent, content["result"] if content["status"] == FINISHED else None


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        _equal(value, other[name])
        if isinstance(value, Mapping)
        else torch.equal(value, other[name])
        for name, value in one.items()
    )


def user_files(place: Place) -> dict[Path, str]:
    """The hashes of the files that a run must never change."""
    paths = [path for path in place.inputs.rglob("*") if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in [*paths, place.out / EARLIER] if path.exists()}  # fmt: skip


def names(folder: Path) -> frozenset[str]:
    """The names of the files with a final name, without checksums and process numbers."""
    found = (path.relative_to(folder).as_posix() for path in files(folder))
    return frozenset(re.sub(r"-[0-9a-f]{16}\.pt", ".pt", name) for name in found)


def damage(place: Place, before: Expected) -> list[str]:
    """What a run, however it ended, must not have done."""
    found = []
    for path in files(place.out):
        if path.suffix == PUT_ASIDE:
            continue
        try:
            require_whole(path)
        except Exception as error:
            found.append(f"half a file: {path.relative_to(place.out)} ({error!r})")
    after = user_files(place)
    found += [f"changed {path}" for path, sha in before.untouched.items() if after.get(path) != sha]
    return found


def words(ended: Ended, operation: Operation | None) -> list[str]:
    """What is wrong with what a run said when it failed."""
    if ended.traceback:
        return [f"a traceback: {ended.traceback.splitlines()[-1]}"]
    if ended.code != 1:
        return [f"exit code {ended.code}"]
    if BARE.match(ended.error):
        return [f"a bare message: {ended.error}"]
    if operation and not names_file(ended.error, operation):
        return [f"does not name {operation.path}: {ended.error}"]
    return []


def names_file(message: str, operation: Operation) -> bool:
    """Whether a message names the file of the operation, or the folder in which it is."""
    message = re.sub(r"\.\d+\.part", ".PID.part", message)
    for path in filter(None, (operation.path, operation.other)):
        name = Path(path).name
        plain = re.sub(r"^\.(.*)\.PID\.part$", r"\1", name)
        folders = [str(folder) for folder in list(Path(path).parents)[:2]]
        if any(part in message for part in (name, plain, *folders)):
            return True
    return False
