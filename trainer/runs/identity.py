"""What makes a run the same run: everything that decides its result, by content rather than by
name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.examples import Example
from ..families.files import CheckpointFile, remember_sha256
from ..methods.base import Method
from ..settings.config import PriorConfig, SamplingConfig, TrainingConfig
from ..settings.effects import Effect, default_of, effects
from ..storage import json_files
from ..storage.hashing import sha256_of
from .metadata import plain

OLD_VERSION = "version of the trainer"
"""Among the facts of runs of numerics version 0: a hash of the sources, which counts no more."""
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Definition:
    """Everything that decides a run's result."""

    facts: Mapping[str, Any]
    """The settings that matter by their dotted names, and hashes."""
    at_default: frozenset[str]
    """The settings that have their default values."""

    @property
    def identity(self) -> str:
        """16 hexadecimal digits that are the same only for runs of the same facts."""
        return _digest(self.facts)[:16]

    def differences(self, facts: Mapping[str, Any]) -> list[str]:
        """The names of the facts in which another run differs. A setting at its default is no
        difference to a run that was begun before there was that setting."""
        names = {*self.facts, *facts} - (self.at_default - facts.keys()) - {OLD_VERSION}
        return [
            name
            for name in sorted(names)
            if self.facts.get(name, _MISSING) != facts.get(name, _MISSING)
        ]


def define(
    config: TrainingConfig,
    method: Method,
    base_sha256: str,
    embedding_sha256: str,
    photos: Sequence[Example],
    class_images: Sequence[Example],
) -> Definition:
    """The hashes are "" for no embedding. `class_images` are the user's own; others follow from the
    settings and the base model."""
    method_name = f"method.{type(method).__name__}."
    settings = dict(_flat(plain(config))) | dict(_flat(plain(method), method_name))
    names = deciding(TrainingConfig) | deciding(type(method), method_name)
    facts = {
        **{name: settings[name] for name in settings if name in names - _idle(config)},
        "photos per step": config.batch_size * config.gradient_accumulation,
        "base model": base_sha256,
        "embedding": embedding_sha256,
        "photos": _digest([_content(example) for example in photos]),
        "class images": _digest([_content(example) for example in class_images]),
    }
    return Definition(facts, frozenset([*_at_default(config), *_at_default(method, method_name)]))


def deciding(settings: type, prefix: str = "") -> set[str]:
    """The dotted names, after `prefix`, of a dataclass's settings that tell runs apart by their
    value."""
    named = effects(settings, prefix)
    return {name for name, effect in named.items() if effect is Effect.VALUE}


def _idle(config: TrainingConfig) -> set[str]:
    """The names of settings that decide nothing in this run, because others switch them off."""
    idle: set[str] = set()
    if config.prior.weight == 0:
        idle |= deciding(PriorConfig, "prior.")
    if config.prior.images:
        idle |= {"prior.num_images"} | deciding(SamplingConfig, "prior.sampling.")
    if not config.ema:
        idle.add("ema_decay")
    return idle


def _at_default(settings: Any, prefix: str = "", default: Any = None) -> Iterator[str]:
    """The dotted names of the settings with their default values; `default` is that of the whole
    dataclass, where it has one."""
    for field in dataclasses.fields(settings):
        name, value = prefix + field.name, getattr(settings, field.name)
        expected = default_of(field) if default is None else getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            nested = None if expected is dataclasses.MISSING else expected
            yield from _at_default(value, f"{name}.", nested)
        elif value == expected:
            yield name


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            # 7 and 7.0 are the same setting, but not the same text.
            whole = isinstance(value, float) and value.is_integer()
            yield prefix + name, int(value) if whole else value


def _content(example: Example) -> list[str]:
    return [sha256_of(example.path), *example.captions]


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
        known = json_files.read(self._file).get(str(path), {})
        if stamp and known.get("stamp") == stamp:
            remember_sha256(path, known["sha256"])
            return str(known["sha256"])
        found = CheckpointFile(path).sha256()
        # Read again: another process may have added to it meanwhile.
        entry = {str(path): {"stamp": stamp, "sha256": found}}
        json_files.write(self._file, {**json_files.read(self._file), **entry})
        return found


def _stamp(path: Path) -> list[int]:
    if not path.is_file():
        return []
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
