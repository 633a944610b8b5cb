"""Small facts kept on disk: JSON objects in files that are always whole."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .flush import flush_folder

logger = logging.getLogger(__name__)


def read(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one if there is none, or, with a warning, none to be read."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
        return dict(found)
    except (ValueError, TypeError) as error:
        logger.warning("'%s' cannot be read (%s), and counts as missing.", path, error)
        return {}


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Put an object in the place of the one before, if any."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Put a text in the place of the one before, if any. On an error that one stays."""
    with replacing(path) as file:
        # What is no Unicode, as file names can be on Linux, is written as JSON does.
        file.write(text.encode(errors="backslashreplace"))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes its place once it is whole and on the disk. On an error,
    what stood there stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # that of a full disk names no file
        raise
    finally:
        part.unlink(missing_ok=True)
    flush_folder(path.parent)


@contextmanager
def warn_on_failure(what: str) -> Iterator[None]:
    """A disk that is full or gone costs `what`, and neither hours of training nor the reason why a
    run ends."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        logger.warning("Could not keep %s: %s", what, error)
