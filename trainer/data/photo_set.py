"""A folder of photos that a user fills and changes: names for new photos, captions, and photos that
are removed and brought back. Nothing is overwritten or deleted, except that a new caption replaces
the one before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..storage.disk_errors import naming
from ..storage.json_files import atomic_write
from ..storage.names import made_safe, numbered, printable
from .captions import CaptionFiles, key, new_caption_file
from .folders import image_format
from .formats import PHOTO_ENDINGS
from .masks import split

REMOVED = ".removed"
"""The folder inside a set with the photos that were removed from it. Neither a run nor the menus of
folders look into hidden folders."""
MAX_CAPTION = 10_000
"""Characters. A text encoder reads a few hundred."""


class PhotoSet:
    """Raises FileNotFoundError for photos that are not in the set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names_for(self, names: Sequence[str]) -> list[str | None]:
        """Safe names for new photos, which differ from all others by more than case. None: not a
        photo, by its extension. A photo keeps a name that exists if it is spelled the same: who
        writes the file compares the contents, because it may be the same photo."""
        taken = {key(name): name for name in _entries(self.folder)}
        found: list[str | None] = []
        for name in names:
            safe = self._name_for(name, taken)
            if safe:
                taken[key(safe)] = safe
            found.append(safe)
        return found

    def _name_for(self, name: str, taken: dict[str, str]) -> str | None:
        plain = name.replace("\\", "/").rpartition("/")[2]
        if plain.startswith(".") or Path(plain).suffix.lower() not in PHOTO_ENDINGS:
            return None

        def is_taken(other: str) -> bool:
            is_link = (self.folder / other).is_symlink()  # writing to it would write elsewhere
            return is_link or taken.get(key(other), other) != other

        return numbered(made_safe(plain), is_taken)

    def find(self, name: str) -> Path:
        """The photo with this name."""
        return _find(self.folder, name)

    def write_caption(self, name: str, text: str, *, replace: bool = True) -> Path:
        """Write the caption of a photo into its caption file, or a new one. An empty text is no
        caption. Raises ValueError for a text that no caption file can have, and FileExistsError if
        the photo has another caption and `replace` is False."""
        photo = _find(self.folder, name)
        _check_caption(text)
        files = _captions_in(self.folder).of(photo)
        file = files[0] if files else new_caption_file(photo, _images(self.folder))
        if not files and not text.strip():
            return file
        content = f"{text.strip()}\n".encode() if text.strip() else b""
        if files and not replace and _content_of(file) not in (b"", content.strip()):
            raise FileExistsError(f"'{name}' has another caption already, which is kept.")
        with atomic_write(file) as opened:
            opened.write(content)
        return file

    def remove(self, name: str) -> str:
        """Move a photo and its captions into `REMOVED`, and return the photo's name there."""
        photo, removed = _find(self.folder, name), self._removed_folder()
        removed.mkdir(exist_ok=True)
        return _move(photo, removed)

    def restore(self, name: str) -> str:
        """Bring a removed photo back, and return its name, which has a number if the old one is
        taken."""
        return _move(_find(self._removed_folder(), name), self.folder)

    def removed(self) -> list[str]:
        """The names of the removed photos."""
        return [path.name for path in split(_images(self._removed_folder()))[0]]

    def _removed_folder(self) -> Path:
        folder = self.folder / REMOVED
        if folder.is_symlink():
            raise ValueError(f"'{printable(folder)}' is a link. Remove it, then repeat.")
        return folder


def _content_of(caption: Path) -> bytes:
    with naming(caption):
        return caption.read_bytes().strip()


def _entries(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _images(folder: Path) -> list[Path]:
    paths = [folder / name for name in _entries(folder) if not name.startswith(".")]
    return [path for path in paths if path.is_file() and image_format(path)]


def _find(folder: Path, name: str) -> Path:
    """The photo with this name. Compared with what is in the folder, so no name leads elsewhere."""
    for path in _images(folder):
        if path.name == name:
            return path
    raise FileNotFoundError(f"There is no photo {name!r} here any more.")


def _captions_in(folder: Path) -> CaptionFiles:
    return CaptionFiles(folder / name for name in _entries(folder))


def _check_caption(text: str) -> None:
    if len(text) > MAX_CAPTION:
        raise ValueError(f"A caption can have {MAX_CAPTION} characters, got {len(text)}.")
    if "\0" in text or text != text.encode(errors="ignore").decode():
        raise ValueError("This caption is not valid text. Type it again.")


def _move(photo: Path, target: Path) -> str:
    """Move a photo and the captions and masks that belong to it alone, under a name that is free
    there."""
    captions, masks = _own_captions(photo), _own_masks(photo)
    taken = set(map(key, _entries(target)))
    stems = {key(name.rpartition(".")[0]) for name in _entries(target)}

    def is_taken(name: str) -> bool:
        return key(name) in taken or bool(captions and key(Path(name).stem) in stems)

    name = numbered(photo.name, is_taken)
    for caption in captions:
        has_full_name = key(caption.stem) == key(photo.name)
        stem = name if has_full_name else Path(name).stem
        caption.rename(target / (stem + caption.suffix))
    for mask in masks:
        new = mask.name if name == photo.name else f"{Path(name).stem}-mask{mask.suffix}"
        mask.rename(target / numbered(new, lambda other: (target / other).exists()))
    photo.rename(target / name)
    return name


def _own_masks(photo: Path) -> list[Path]:
    _, masks = split(_images(photo.parent))
    shared = {mask for image, found in masks.items() if image != photo for mask in found}
    return [mask for mask in masks.get(photo, ()) if mask not in shared]


def _own_captions(photo: Path) -> list[Path]:
    captions = _captions_in(photo.parent)
    others = [image for image in _images(photo.parent) if image != photo]
    shared = {file for image in others for file in captions.of(image)}
    return [file for file in captions.of(photo) if file not in shared]
