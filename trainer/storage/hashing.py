"""SHA-256 of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .disk_errors import naming

_BLOCK = 1 << 20


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Reads one block at a time, so the file may be
    larger than memory."""
    digest = hashlib.sha256()
    with naming(path), path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
