"""Photos as small images for the page, read in the same way as for training. Independent of
ComfyUI."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import Image

from ..trainer.data.images import parse_color, read_image
from ..trainer.data.looks import Look, look_at

SIDE = 192
"""Longer side in pixels."""
QUALITY = 80
MAX_KEPT = 1000
"""Thumbnails that are kept in memory, each about 6 kB."""

_one_at_a_time = threading.Lock()
"""Large photos take hundreds of MB while they are read."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    size: tuple[int, int] | None
    """Width and height of the upright photo. None: it cannot be read."""
    jpeg: bytes
    fault: str
    """Why the photo cannot be read, or ""."""
    notes: tuple[str, ...]
    """The warnings of reading it."""
    look: Look | None = None
    """What advice needs of it. None: it cannot be read."""


def thumbnail(path: Path) -> Thumbnail:
    """Reads the photo once, and again if its file changes."""
    stat = path.stat()
    with _one_at_a_time:
        return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(MAX_KEPT)
def _read(path: Path, _changed: int, _num_bytes: int) -> Thumbnail:
    with _collected_warnings() as notes:
        try:
            image = read_image(path, parse_color("white"))
        except (ValueError, OSError) as error:
            return Thumbnail(None, b"", str(error), ())
    size, look, content = image.size, look_at(image), BytesIO()
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    image.save(content, format="JPEG", quality=QUALITY)
    return Thumbnail(size, content.getvalue(), "", tuple(notes), look)


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """The warnings that this thread's trainer logs inside."""
    handler = _Collector()
    pack_logger = logging.getLogger(__name__.rpartition(".nodes.")[0])
    pack_logger.addHandler(handler)
    try:
        yield handler.messages
    finally:
        pack_logger.removeHandler(handler)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._thread = threading.get_ident()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.messages.append(record.getMessage())
