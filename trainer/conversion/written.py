"""Files that were written before from the same files with the same settings, which their metadata
say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..families.files import CheckpointFile
from ..storage.listing import matching

FACTS, RESULT = "from", "result"
"""Below one of our keys in a file's metadata: what decided the file's contents, and what is known
of it."""


def as_metadata(key: str, facts: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, str]:
    """What `find` looks for, and the date."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {key: json.dumps({FACTS: facts, RESULT: result}), "modelspec.date": now}


def find(folder: Path, key: str, facts: Mapping[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """The newest file in a folder with these facts below a key of its metadata, and its result.
    None: there is no such file."""
    files = sorted(matching(folder, "*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    for path in reversed(files):
        for found in _descriptions(path, key):
            if found.get(FACTS) == facts:
                return path, found[RESULT]
    return None


def _descriptions(path: Path, key: str) -> Iterator[dict[str, Any]]:
    try:
        found = json.loads(CheckpointFile(path).metadata.get(key, "null"))
    except (OSError, ValueError, RecursionError):
        return  # another program's, or damaged
    if isinstance(found, dict) and isinstance(found.get(RESULT), dict):
        yield found
