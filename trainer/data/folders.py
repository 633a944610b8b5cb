"""What a folder of photos contains. All that looks like a user's data and is not used is named in a
warning."""

from __future__ import annotations

import codecs
import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..storage.names import printable, shortened
from .captions import CAPTION_ENDINGS, CaptionFiles
from .formats import (
    IMAGE_ENDINGS,
    PHOTO_ENDINGS,
    READABLE_ENDINGS,
    format_of,
    how_to_read,
    is_readable,
)
from .masks import split

logger = logging.getLogger(__name__)

MAX_FOLDERS = 200
"""How many folders inside a folder are searched for photos."""
NO_CAPTIONS = ("thumbs.db", "desktop.ini", "manifest.jsonl")
"""Files of the system, and the list that belongs to generated class images."""
NO_CAPTION_ENDINGS = (".aae", ".xmp")
"""Text files that phones and photo editors write beside photos."""


@dataclass(slots=True)
class Contents:
    """The visible entries of a folder, in natural order. `images` and their caption files are used,
    the others are not."""

    folder: Path
    images: list[Path] = field(default_factory=list)
    masks: dict[Path, list[Path]] = field(default_factory=dict)
    """Images such as dog-mask.png beside dog.jpg, by image."""
    unreadable: dict[str, list[Path]] = field(default_factory=dict)
    """Photos by the name of their format, which cannot be read here."""
    misnamed: list[Path] = field(default_factory=list)
    """Images whose extension is not that of an image, such as backup copies."""
    texts: list[Path] = field(default_factory=list)
    """Text files that are not the caption of an image."""
    subfolders: dict[str, int] = field(default_factory=dict)
    """Folders with photos inside this one: path from here, and number of photos."""
    broken_links: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def images_in(folder: Path, *, quiet: bool = False) -> list[Path]:
    """The images of a folder, sorted by name, numbers by value. Unless `quiet`, logs what is not
    used. Raises ValueError if there are none."""
    contents = look_into(folder)
    if not contents.images:
        raise ValueError(why_empty(contents))
    if not quiet:
        _log_unused(contents)
    return contents.images


def look_into(folder: Path) -> Contents:
    contents = Contents(folder)
    files = sorted(folder.iterdir(), key=_natural_order)
    for file in files:
        _sort_in(file, contents)
    skipped = [photo for photos in contents.unreadable.values() for photo in photos]
    owners = [*contents.images, *skipped]
    contents.images, contents.masks = split(contents.images, skipped)
    captions = CaptionFiles(contents.texts)
    theirs = {file for image in owners for file in captions.of(image)}
    contents.texts = [file for file in contents.texts if file not in theirs]
    return contents


def image_format(path: Path) -> str:
    """The format of an image file, also if it cannot be read here. "" if it is not an image."""
    return "" if path.suffix.lower() in CAPTION_ENDINGS else format_of(path)


def _sort_in(path: Path, contents: Contents) -> None:
    # On disks of other systems, macOS writes a hidden "._photo.jpg", not an image, for each photo.
    if path.name.startswith("."):
        contents.others.append(path)
    elif path.is_dir():
        found = {} if _is_system_folder(path.name) else _photos_below(path, contents.folder)
        contents.subfolders |= found
        contents.others += [] if found else [path]
    elif not path.is_file():
        (contents.others if path.exists() else contents.broken_links).append(path)
    elif name := image_format(path):
        _sort_in_image(path, name, contents)
    else:
        (contents.texts if _is_text(path) else contents.others).append(path)


def _sort_in_image(path: Path, name: str, contents: Contents) -> None:
    if not is_readable(name):
        contents.unreadable.setdefault(name, []).append(path)
    elif path.suffix.lower() in (*READABLE_ENDINGS, ""):
        contents.images.append(path)
    else:
        contents.misnamed.append(path)


def _is_system_folder(name: str) -> bool:
    """Whether a folder is hidden, or is made by a disk server or by macOS for thumbnails."""
    return name.startswith(".") or name in ("@eaDir", "__MACOSX")


def _is_text(path: Path) -> bool:
    if path.suffix.lower() in CAPTION_ENDINGS:
        return True
    if path.name.lower() in NO_CAPTIONS or path.suffix.lower() in NO_CAPTION_ENDINGS:
        return False
    try:
        with path.open("rb") as file:
            head = file.read(256)
        # Incremental, because the last character may be cut.
        return bool(head) and "\0" not in codecs.getincrementaldecoder("utf-8")().decode(head)
    except (OSError, UnicodeDecodeError):
        return False


def _photos_below(folder: Path, start: Path) -> dict[str, int]:
    """The folders from `folder` on that contain photos, by their paths from `start`."""
    found = {}
    for number, (path, folders, files) in enumerate(os.walk(folder)):
        folders[:] = sorted(name for name in folders if not _is_system_folder(name))
        # By their extensions, because these may be many files.
        photos = sum(
            Path(name).suffix.lower() in PHOTO_ENDINGS for name in files if not name.startswith(".")
        )
        if photos:
            found[Path(path).relative_to(start).as_posix()] = photos
        if number == MAX_FOLDERS:
            break
    return found


def why_empty(contents: Contents) -> str:
    """Why a folder without images is refused."""
    if contents.unreadable:
        return f"None of the photos in {contents.folder} can be read. " + " ".join(
            f"In the format {name} ({len(photos)}): {_names(photos)}. {how_to_read(name)}"
            for name, photos in contents.unreadable.items()
        )
    if contents.subfolders:
        return (
            f"No images in {contents.folder} itself, but in folders inside it: "
            f"{_counted(contents.subfolders)}. Choose such a folder instead."
        )
    return f"No images in {contents.folder}. Looked for {', '.join(IMAGE_ENDINGS)}."


def _log_unused(contents: Contents) -> None:
    for message in unused(contents):
        logger.warning(message)
    if contents.others:
        logger.info(
            "Skipped %d entries in %s that are not images: %s.",
            len(contents.others), printable(contents.folder), _names(contents.others),
        )  # fmt: skip


def unused(contents: Contents) -> Iterator[str]:
    """A warning for each kind of entry that looks like a user's data and is not used."""
    folder = printable(contents.folder)
    for name, photos in contents.unreadable.items():
        what = f"Photos in {folder} are not used, because the format {name} cannot be read"
        yield _counted_names(what, photos, how_to_read(name))
    if contents.subfolders:
        yield (
            f"The photos in folders inside {folder} are not used: {_counted(contents.subfolders)}. "
            "Choose such a folder instead, or move its photos."
        )
    for what, paths, advice in _unused_files(contents, folder):
        if paths:
            yield _counted_names(what, paths, advice)


def _unused_files(contents: Contents, folder: str) -> Iterator[tuple[str, Sequence[Path], str]]:
    yield (
        f"Images in {folder} are not used, because their names do not end like those of images",
        contents.misnamed,
        "To train on them, rename them to .jpg or .png.",
    )
    photo = contents.images[0] if contents.images else Path("photo.jpg")
    yield (
        f"Text files in {folder} are not used, because they are not the caption of a photo",
        contents.texts,
        f"The caption of '{printable(photo.name)}' would be '{printable(photo.stem)}.txt'.",
    )
    yield (
        f"Links in {folder} lead to files that do not exist",
        contents.broken_links,
        "Restore the files, or remove the links.",
    )


def _counted_names(what: str, paths: Sequence[Path], advice: str) -> str:
    return f"{what} ({len(paths)}): {_names(paths)}. {advice}"


def _names(paths: Sequence[Path]) -> str:
    return shortened([path.name for path in paths])


def _counted(subfolders: Mapping[str, int]) -> str:
    return shortened([f"'{path}' ({photos})" for path, photos in subfolders.items()])


def _natural_order(path: Path) -> tuple[list[tuple[str, int]], str]:
    """Sort key that puts "2.jpg" before "10.jpg". The order is the same on every operating system,
    whatever order it lists files in and however it encodes accents."""
    name = unicodedata.normalize("NFC", path.name)
    parts = re.findall(r"([^0-9]*)([0-9]*)", name.casefold())
    return [(text, int(number or -1)) for text, number in parts], name
