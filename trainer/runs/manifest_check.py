"""Checks a manifest that was read: others may have written it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from . import numerics

UNFINISHED, FINISHED = "unfinished", "finished"
"""A run's status."""
NEEDED = ("status", "started", "config", "intermediate")
"""The keys without which a run cannot be opened or listed."""

Check = Callable[[Any], bool]


def fault(content: Mapping[str, Any], *, whole: bool) -> str:
    """The name of a key that has another kind of value than this program writes, or "". With
    `whole`, also that of a key that is missing."""
    wrong = [key for key, check in KEYS.items() if key in content and not check(content[key])]
    missing = [key for key in NEEDED if key not in content]
    if whole and content.get("status") == FINISHED and not content.get("result"):
        missing.append("result")
    return next(iter([*wrong, *(missing if whole else [])]), "")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_path(value: Any) -> bool:
    """Whether the system can look for a file of this name."""
    if not isinstance(value, str) or "\0" in value or len(value) > 4000:
        return False
    return all(len(part.encode(errors="replace")) <= 255 for part in value.split(os.sep))


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _is_date(value: Any) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (ValueError, TypeError):
        return False


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _all_of(check: Check) -> Check:
    """A list whose items pass the check."""

    def passes(value: Any) -> bool:
        return isinstance(value, list) and all(map(check, value))

    return passes


def _each(check: Check) -> Check:
    """An object whose values pass the check."""

    def passes(value: Any) -> bool:
        return isinstance(value, dict) and all(map(check, value.values()))

    return passes


def _object(**keys: Check) -> Check:
    """An object with these keys, and perhaps others."""

    def passes(value: Any) -> bool:
        return isinstance(value, dict) and all(
            key in value and check(value[key]) for key, check in keys.items()
        )

    return passes


def _is_pair(value: Any) -> bool:
    return _all_of(_is_number)(value) and len(value) == 2


_is_result = _object(
    steps=_is_whole,
    total_steps=_is_whole,
    files=_each(_object(path=_is_path, sha256=_is_text)),
    best=_each(_is_path),
    saves=_all_of(_each(_is_path)),
    moved=_each(_is_pair),
    is_scored=_is_bool,
)
KEYS: Mapping[str, Check] = {
    "identity": _is_text,
    "status": lambda value: value in (UNFINISHED, FINISHED),
    "started": _is_date,
    "config": _object(steps=_is_whole, output=_object(name=_is_text)),
    "definition": _object(steps=_is_whole),
    numerics.KEY: _is_whole,
    "intermediate": _all_of(_is_path),
    "result": lambda value: value is None or _is_result(value),
}
