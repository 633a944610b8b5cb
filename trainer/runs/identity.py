"""Which runs are the same: those with equal values of everything that decides the result. Files
count by their content, not by their names."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.examples import Example
from ..families.files import CheckpointFile, file_stamp, remember_sha256
from ..methods.base import Method
from ..settings.config import PriorConfig, SamplingConfig, TrainingConfig
from ..settings.effects import Effect, default_of, effects
from ..settings.values import as_json, flatten
from ..storage import json_files
from ..storage.hashing import sha256_of

logger = logging.getLogger(__name__)

OLD_VERSION = "version of the trainer"
"""A fact of runs with numerics version 0: a hash of the source code, which is ignored now."""
MASKS, ALPHA = "masks", "alpha"
SETTINGS_OF_MASKS = {"dataset.unmasked_weight", "dataset.random_backgrounds"}
"""They have no effect without masks."""
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Definition:
    """Everything that decides a run's result."""

    facts: Mapping[str, Any]
    """Settings by their dotted names, and hashes of files."""
    at_default: frozenset[str]
    """Names of the settings that have their default values."""
    files: frozenset[str] = frozenset()
    """The names of those facts that are about files."""

    def with_settings(self, config: TrainingConfig, method: Method) -> Definition:
        """The definition of a run on the same files with other settings."""
        return _definition(config, method, {name: self.facts[name] for name in self.files})

    @property
    def identity(self) -> str:
        """16 hexadecimal digits computed from the facts."""
        return _digest(self.facts)[:16]

    def differences(self, facts: Mapping[str, Any]) -> list[str]:
        """The sorted names of the facts in which another run differs. A setting that the other run
        lacks, because it is older than the setting, counts as the default."""
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
    vae_sha256: str = "",
    lora_sha256s: Sequence[str] = (),
    method_sha256s: Mapping[str, str] | None = None,
) -> Definition:
    """The definition of a run. Hashes of files that are not set are "". `class_images` are
    the user's own; generated ones follow from the settings and the base model. `method_sha256s` are
    those of the files that the method's options name, by option."""
    files = {
        "base model": base_sha256,
        "embedding": embedding_sha256,
        "vae": vae_sha256,
        "loras": list(lora_sha256s),
        "photos": _digest([_content(example) for example in photos]),
        "class images": _digest([_content(example) for example in class_images]),
        **{f"{_prefix(method)}{name}": sha256 for name, sha256 in (method_sha256s or {}).items()},
        **_masks(config, photos),
    }
    return _definition(config, method, files)


def _definition(config: TrainingConfig, method: Method, files: Mapping[str, Any]) -> Definition:
    method_name = _prefix(method)
    settings = {**_values(config), **_values(method, method_name)}
    names = deciding(TrainingConfig) | deciding(type(method), method_name)
    unused = _unused(config) | (set() if MASKS in files else SETTINGS_OF_MASKS)
    facts = {
        **{name: settings[name] for name in settings if name in names - unused},
        "photos per step": config.photos_per_step,
        **files,
    }
    at_default = frozenset([*_at_default(config), *_at_default(method, method_name)])
    return Definition(facts, at_default, frozenset(files))


def _prefix(method: Method) -> str:
    """What the names of a method's options begin with."""
    return f"method.{type(method).__name__}."


def named_files(method: Method) -> dict[str, Path | None]:
    """The files that a method's options name, by option."""
    named = effects(type(method))
    return {name: getattr(method, name) for name in named if named[name] is Effect.CONTENT}


def deciding(settings: type, prefix: str = "") -> set[str]:
    """The dotted names, after `prefix`, of a dataclass's settings whose values decide the
    result."""
    named = effects(settings, prefix)
    return {name for name, effect in named.items() if effect is Effect.VALUE}


def _unused(config: TrainingConfig) -> set[str]:
    """The names of settings that have no effect in this run, because other settings turn them
    off."""
    unused: set[str] = set()
    if config.prior.weight == 0:
        unused |= deciding(PriorConfig, "prior.")
    if config.prior.teacher_weight > 0:
        unused -= {"prior.prompt", "prior.teacher_weight", "prior.teacher_ratio"}
    else:
        unused.add("prior.teacher_ratio")
    if config.prior.images:
        unused |= {"prior.num_images"} | deciding(SamplingConfig, "prior.sampling.")
    if not config.ema:
        unused.add("ema_decay")
    if config.gradient_release:
        unused.add("optimizer.max_grad_norm")
    return unused


def _at_default(settings: Any, prefix: str = "", default: Any = None) -> Iterator[str]:
    """The dotted names of the settings that have their default values. `default` is the default of
    the whole dataclass, if it has one."""
    for field in dataclasses.fields(settings):
        name, value = prefix + field.name, getattr(settings, field.name)
        expected = default_of(field) if default is None else getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            nested = None if expected is dataclasses.MISSING else expected
            yield from _at_default(value, f"{name}.", nested)
        elif value == expected:
            yield name


def _values(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names. Whole floats become ints: 7 and 7.0 are the same setting, but
    not the same JSON."""
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in flatten(as_json(settings), prefix)
    }


def _masks(config: TrainingConfig, photos: Sequence[Example]) -> dict[str, str]:
    """The fact about masks. None without masks, so that runs older than masks are the same."""
    otherwise = ALPHA if config.dataset.masks == ALPHA else ""
    found = [sha256_of(photo.mask) if photo.mask else otherwise for photo in photos]
    return {MASKS: _digest(found)} if any(found) else {}


def _content(example: Example) -> list[str]:
    return [sha256_of(example.path), *example.captions]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Hashes:
    """SHA-256 of checkpoint files. `file` remembers them, so that a file is read again only after
    it was written to."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def sha256(self, path: Path) -> str:
        """Raises FileNotFoundError if the file does not exist, ValueError if it is not a
        checkpoint."""
        path = path.resolve()
        stamp = list(file_stamp(path)) if path.is_file() else None
        known = self._read().get(str(path))
        if stamp and isinstance(known, dict) and known.get("stamp") == stamp and "sha256" in known:
            remember_sha256(path, str(known["sha256"]))
            return str(known["sha256"])
        found = CheckpointFile(path).sha256()
        # Read again: another process may have added an entry in the meantime.
        entry = {str(path): {"stamp": stamp, "sha256": found}}
        with json_files.warn_on_failure("the hashes of the files that the run uses"):
            json_files.write(self._file, {**self._read(), **entry})
        return found

    def _read(self) -> dict[str, Any]:
        """What is remembered; {} if it cannot be read, because files can be hashed again."""
        try:
            return json_files.read(self._file)
        except OSError as error:
            logger.warning("The hashes in '%s' cannot be read (%s), so the files are read again.",
                           self._file, error.strerror)  # fmt: skip
            return {}
