"""Finds the images to train on and their captions. Does not open any image."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MAX_NAMES = 5
"""How many file names a log message lists before it only counts the rest."""


@dataclass(frozen=True, slots=True)
class Example:
    """One image to train on. Serves as the key of its latents."""

    path: Path
    captions: tuple[str, ...]
    """One caption, or several, one of which is drawn at each use."""
    is_prior: bool = False
    """Whether it is a class image rather than a photo of the subject."""
    mirrored: bool = False


def find_examples(entries: Sequence[Path], prompt: str, *, is_prior: bool = False) -> list[Example]:
    """The images of these folders and files, in the given order. A folder's images are sorted by
    name, numbers by value. An image's caption is the text file beside it, or else the prompt.

    Raises FileNotFoundError if an entry does not exist, and ValueError if a folder has no images, a
    file does not have the extension of an image, an image is listed twice, or a caption is not
    UTF-8.
    """
    paths: list[Path] = []
    for entry in entries:
        paths += _images_in(entry) if entry.is_dir() else [_named_image(entry)]
    for path, times in Counter(paths).items():
        if times > 1:
            raise ValueError(f"'{path}' is named {times} times. Name each image once.")
    return [Example(path, (_caption(path) or prompt,), is_prior) for path in paths]


def with_mirrors(examples: Sequence[Example]) -> list[Example]:
    """Each example followed by its mirror image."""
    return [replace(e, mirrored=mirrored) for e in examples for mirrored in (False, True)]


def warn_of_cut_captions(examples: Iterable[Example], cut_text: Callable[[str], str]) -> None:
    """Log a warning for each different caption that is too long. `cut_text` returns the end of a
    caption that the text encoder does not read."""
    first_with: dict[str, Path] = {}
    for example in examples:
        for caption in example.captions:
            first_with.setdefault(caption, example.path)
    for caption, path in first_with.items():
        cut = cut_text(caption)
        if cut:
            logger.warning(
                "The caption of '%s' is longer than the text encoder can read. This end of it is "
                "ignored: '%s'. Shorten the caption.", path.name, cut,
            )  # fmt: skip


def shortened(names: Sequence[str]) -> str:
    """The names separated by commas: the first `MAX_NAMES`, then the number of the others."""
    more = [f"and {len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
    return ", ".join([*names[:MAX_NAMES], *more])


def _images_in(folder: Path) -> list[Path]:
    files = sorted(folder.iterdir(), key=_natural_order)
    images = [file for file in files if _is_image(file)]
    if not images:
        raise ValueError(f"No images in {folder}. Looked for {', '.join(IMAGE_ENDINGS)}.")
    expected = {*images, *map(_caption_path, images)}
    skipped = [file.name for file in files if file not in expected]
    if skipped:
        names = shortened(skipped)
        logger.info(
            "Skipped %d entries in %s that are not images: %s.", len(skipped), folder, names
        )
    return images


def _named_image(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"'{path}' does not exist. Name a folder of images, or images.")
    if path.suffix.lower() not in IMAGE_ENDINGS:
        raise ValueError(
            f"'{path}' is not a supported image. Use {', '.join(IMAGE_ENDINGS)}, or a folder."
        )
    return path


def _is_image(path: Path) -> bool:
    # On disks of other systems, macOS writes a hidden "._photo.jpg", not an image, for each photo.
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in IMAGE_ENDINGS and path.is_file()


def _caption(path: Path) -> str:
    """The text file beside the image; "" if it does not exist."""
    file = _caption_path(path)
    if not file.is_file():
        return ""
    try:
        return file.read_text("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError(f"The caption '{file}' is not UTF-8 text. Save it as UTF-8.") from None


def _caption_path(path: Path) -> Path:
    return path.with_suffix(".txt")


def _natural_order(path: Path) -> tuple[list[tuple[str, int]], str]:
    """Sort key that puts "2.jpg" before "10.jpg". The order is the same on every operating system,
    whatever order it lists files in and however it encodes accents."""
    name = unicodedata.normalize("NFC", path.name)
    parts = re.findall(r"([^0-9]*)([0-9]*)", name.casefold())
    return [(text, int(number or -1)) for text, number in parts], name
