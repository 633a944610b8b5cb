"""PNG files that are complete or do not exist."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .json_files import atomic_write


def save_png(path: Path, image: Image.Image, text: PngInfo | None = None) -> None:
    """Write an image with its texts, replacing an existing file. On an error the old file stays.

    Raises OSError that names the file: Pillow hides what a disk reports while it writes itself."""
    content = BytesIO()
    image.save(content, format="PNG", pnginfo=text)
    with atomic_write(path) as file:
        file.write(content.getbuffer())
