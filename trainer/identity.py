"""What makes a run the same run: everything that decides its result, by content rather than by
name."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import records
from .config import TrainingConfig
from .data.examples import Example
from .families.files import CheckpointFile, remember_sha256
from .metadata import plain
from .methods.base import Method

PACKAGE = Path(__file__).parent
_NOT_DECISIVE = (
    "base", "embedding", "dataset.photos", "prior.images", "prior.sampling.batch_size", "preview.",
    "scoring.", "output.folder", "output.embedding_folder", "output.name", "output.save_every",
    "output.keep", "output.state_every", "output.keep_state", "batch_size",
    "gradient_accumulation", "gradient_checkpointing", "channels_last", "compile",
)  # fmt: skip
"""Settings that leave the result as it is but for rounding, so that a run which was too large for
the memory can go on with others, or whose files count by their bytes."""
_WITHOUT_A_SAY = (
    "toy/", "__main__", "commands", "comparison", "judges", "judging", "metrics", "scores.",
    "terminal",
)  # fmt: skip
"""How the names of source files begin that no run's result comes of."""


def identify(definition: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that are the same only for runs of the same definition."""
    return _digest(definition)[:16]


def define(
    config: TrainingConfig,
    method: Method,
    base_sha256: str,
    embedding_sha256: str,
    photos: Sequence[Example],
    class_images: Sequence[Example],
) -> dict[str, Any]:
    """Everything that decides a run's result: the settings that matter by their dotted names, and
    hashes, "" for no embedding. `class_images` are the user's own; others follow from the settings
    and the base model."""
    settings = {**plain(config), "method": {type(method).__name__: plain(method)}}
    idle = _NOT_DECISIVE + _without_effect(config)
    return {
        **{name: value for name, value in _flat(settings) if not name.startswith(idle)},
        "photos per step": config.batch_size * config.gradient_accumulation,
        "base model": base_sha256,
        "embedding": embedding_sha256,
        "photos": _digest([_content(example) for example in photos]),
        "class images": _digest([_content(example) for example in class_images]),
        "version of the trainer": code_version(),
    }


@functools.cache
def code_version() -> str:
    """A hash of the source files that decide a run's result."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(_WITHOUT_A_SAY):
            digest.update(f"{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _without_effect(config: TrainingConfig) -> tuple[str, ...]:
    names: list[str] = []
    if config.prior.weight == 0:
        names.append("prior.")
    if config.prior.images:
        names += ["prior.num_images", "prior.sampling."]
    if not config.ema:
        names.append("ema_decay")
    return tuple(names)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            # 7 and 7.0 are the same setting, but not the same text.
            whole = isinstance(value, float) and value.is_integer()
            yield prefix + name, int(value) if whole else value


def _content(example: Example) -> list[str]:
    return [hashlib.sha256(example.path.read_bytes()).hexdigest(), *example.captions]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Hashes:
    """SHA-256 of checkpoint files, known from `file` for as long as they are not written to."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def sha256(self, path: Path) -> str:
        """FileNotFoundError if there is no such file, ValueError if it is no checkpoint."""
        path = path.resolve()
        stamp = _stamp(path)
        known = records.read(self._file).get(str(path), {})
        if stamp and known.get("stamp") == stamp:
            remember_sha256(path, known["sha256"])
            return str(known["sha256"])
        found = CheckpointFile(path).sha256()
        # Read again: another process may have added to it meanwhile.
        entry = {str(path): {"stamp": stamp, "sha256": found}}
        records.write(self._file, {**records.read(self._file), **entry})
        return found


def _stamp(path: Path) -> list[int]:
    if not path.is_file():
        return []
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
