"""Small JSON files, replaced atomically: readers see either the old content or the new."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

from .disk_errors import naming
from .flush import flush_folder, make_folder
from .locks import delete_abandoned, held

logger = logging.getLogger(__name__)


def read(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Returns {} if the file is missing, or, with a warning, if
    it is not valid JSON."""
    if not path.is_file():
        return {}
    try:
        with naming(path):
            text = path.read_text("utf-8")
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        logger.warning("'%s' cannot be read (%s). It is treated as missing.", path, error)
        return {}


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object to a file, replacing any existing one."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text to a file, replacing any existing one. On an error the old file stays."""
    with atomic_write(path) as file:
        # Linux file names may not be valid Unicode. Escape what UTF-8 cannot encode.
        file.write(text.encode(errors="backslashreplace"))


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing; on leaving, sync it to disk and rename it to `path`. On an
    error, any existing file at `path` stays. Temporary files that killed processes left for `path`
    are deleted."""
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming(path):
        for other in path.parent.glob(f".{escape(path.name)}.*.part"):
            delete_abandoned(other)
        try:
            with held(part):
                with part.open("wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    flush_folder(path.parent)


@contextmanager
def warn_on_failure(what: str) -> Iterator[None]:
    """Log a warning instead of failing if `what` cannot be saved. A full disk should not end hours
    of training, nor hide the error that did."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        logger.warning("Could not save %s: %s", what, error)
