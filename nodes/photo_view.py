"""What nodes show of a folder of photos. Independent of ComfyUI.

`web/photo_set.js` declares the same keys; a test compares them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from ..trainer.data.looks import advice
from ..trainer.data.photo_set import PhotoSet
from ..trainer.data.survey import Photo, survey
from ..trainer.storage.names import printable
from .errors import reword
from .thumbnails import thumbnail

PHOTOS_EVENT = "dreambooth.photos"
"""The websocket message that a folder of photos was changed, sent to all pages."""
PHOTOS_ROUTE = "/dreambooth/photos"
THUMBNAIL_ROUTE = "/dreambooth/photos/thumbnail"
ADD_ROUTE, CHANGED_ROUTE = "/dreambooth/photos/add", "/dreambooth/photos/changed"
CAPTION_ROUTE = "/dreambooth/photos/caption"
REMOVE_ROUTE, RESTORE_ROUTE = "/dreambooth/photos/remove", "/dreambooth/photos/restore"
MAX_READ = 200
"""Photos of a folder that are read to find out whether they can be. A large photo takes a tenth of
a second."""


class PhotoView(TypedDict):
    name: str
    stamp: int
    """When the file was changed, so that browsers do not show an older one of the same name."""
    width: int | None
    """None: it cannot be read, or was not."""
    height: int | None
    caption: str
    """What its own caption file says. Empty: the prompt is used."""
    caption_file: str | None
    """The name of that file."""
    mask: str | None
    """The name of the file that says where the subject is in it."""
    fault: str
    """Why a run cannot use it, or not its caption."""
    is_used: bool
    """Whether a run reads it. It leaves out photos in formats that cannot be read here."""


class PhotosView(TypedDict):
    folder: str
    """Its name in the menu."""
    is_editable: bool
    photos: list[PhotoView]
    """In the order of a run, then those that it leaves out."""
    fault: str
    """Why a run would refuse the folder, or ""."""
    notes: list[str]
    """The warnings of a run."""
    advice: list[str]
    """What can be better about the photos."""
    removed: list[str]
    """The names of the photos that were removed from it and can be brought back."""


def view(folder: str, path: Path, prompt: str, *, is_editable: bool) -> PhotosView:
    """Reads every photo once, which may take a while. `prompt` is the instance prompt."""
    found = survey(path, prompt)
    read = found.photos[:MAX_READ]
    notes = [note for photo in read for note in thumbnail(photo.path).notes]
    return PhotosView(
        folder=folder,
        is_editable=is_editable,
        photos=[*map(_read, read), *map(_unread, found.photos[MAX_READ:])],
        fault=reword(printable(found.fault)),
        notes=[reword(printable(note)) for note in _once([*found.notes, *notes])],
        advice=_advice(read),
        removed=PhotoSet(path).removed() if is_editable else [],
    )


def _advice(photos: Iterable[Photo]) -> list[str]:
    """From the same reading as the thumbnails. The resolution is not known."""
    looks = {
        printable(photo.path.name): replace(look, has_mask=photo.mask is not None)
        for photo in photos
        if photo.is_used and (look := thumbnail(photo.path).look)
    }
    return advice(looks)


def _read(photo: Photo) -> PhotoView:
    """With what only reading its pixels can tell."""
    small = thumbnail(photo.path)
    width, height = small.size or (None, None)
    values = {**_unread(photo), "width": width, "height": height}
    fault = photo.fault or reword(printable(small.fault))
    return PhotoView(**{**values, "fault": fault})  # type: ignore[typeddict-item]


def _unread(photo: Photo) -> PhotoView:
    return PhotoView(
        name=photo.path.name,
        stamp=photo.path.stat().st_mtime_ns // 1_000_000,
        width=None,
        height=None,
        caption=photo.caption,
        caption_file=printable(photo.caption_file.name) if photo.caption_file else None,
        mask=printable(photo.mask.name) if photo.mask else None,
        fault=printable(photo.fault),
        is_used=photo.is_used,
    )


def _once(notes: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(notes))
