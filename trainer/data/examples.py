"""Which images there are to train on, and the caption of each. Opens no image."""

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
"""Files named in one line of the log; of more, only the number is told."""


@dataclass(frozen=True, slots=True)
class Example:
    """One image on disk, as it is trained on. It is the key to its own latents."""

    path: Path
    captions: tuple[str, ...]
    """Its caption, or those of which one is drawn at each use."""
    is_prior: bool = False
    """A class image rather than a photo of the subject."""
    mirrored: bool = False


def find_examples(entries: Sequence[Path], prompt: str, *, is_prior: bool = False) -> list[Example]:
    """The images in these folders and among these files: the entries in their order, a folder's
    images by name, numbers by value. Captions come from the text file beside an image, or are the
    prompt.

    FileNotFoundError for what does not exist; ValueError for a folder without images, a named file
    that is none, an image named twice, and a caption that is not UTF-8.
    """
    paths: list[Path] = []
    for entry in entries:
        paths += _images_in(entry) if entry.is_dir() else [_named_image(entry)]
    for path, times in Counter(paths).items():
        if times > 1:
            raise ValueError(f"'{path}' is named {times} times. Name each image once.")
    return [Example(path, (_caption(path) or prompt,), is_prior) for path in paths]


def with_mirrors(examples: Sequence[Example]) -> list[Example]:
    """Each example, followed by its mirror image."""
    return [replace(e, mirrored=mirrored) for e in examples for mirrored in (False, True)]


def warn_of_cut_captions(examples: Iterable[Example], cut_text: Callable[[str], str]) -> None:
    """Log a warning for each different caption of which `cut_text` says that an end is not read."""
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
    """The names in a row, or the first of them and how many more there are."""
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
        logger.info("Skipped %d in %s that are not images: %s.", len(skipped), folder, names)
    return images


def _named_image(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"'{path}' does not exist. Name a folder of images, or images.")
    if path.suffix.lower() not in IMAGE_ENDINGS:
        raise ValueError(
            f"'{path}' is not named like an image. Use {', '.join(IMAGE_ENDINGS)}, or a folder."
        )
    return path


def _is_image(path: Path) -> bool:
    # A Mac leaves a hidden "._photo.jpg" that is no image beside each photo on foreign disks.
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in IMAGE_ENDINGS and path.is_file()


def _caption(path: Path) -> str:
    """What the text file beside the image says; "" without one."""
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
    """Sorts "2.jpg" before "10.jpg", the same under every system's own order and spelling."""
    name = unicodedata.normalize("NFC", path.name)
    parts = re.findall(r"([^0-9]*)([0-9]*)", name.casefold())
    return [(text, int(number or -1)) for text, number in parts], name
