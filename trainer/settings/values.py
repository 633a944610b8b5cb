"""Settings as plain values, to be logged, compared and written as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RELATIVE_TO = "relative_to"
"""The key of a settings file that names the folder of its relative paths, seen from the file. If it
is missing, they are relative to the current folder."""


def as_json(settings: Any) -> dict[str, Any]:
    """A settings dataclass as nested dicts of JSON values. Of a path only the name is kept: folders
    are private to the user, and files are identified by their hashes instead."""
    text = json.dumps(dataclasses.asdict(settings), default=lambda value: Path(value).name)
    values: dict[str, Any] = json.loads(text)
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, each with its dotted name after `prefix`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
