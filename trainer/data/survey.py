"""What a run would find in a folder of photos, before any run: the photos, their captions, and in
the run's own words what it would refuse or leave out. Does not decode any image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .captions import read_caption
from .examples import caption_doubts, caption_files
from .folders import Contents, look_into, unused, why_empty
from .formats import require_readable
from .masks import mask_files, several_masks


@dataclass(frozen=True, slots=True)
class Photo:
    path: Path
    caption: str = ""
    """What its own caption file says. Empty: the prompt is used."""
    caption_file: Path | None = None
    mask: Path | None = None
    """The file that says where the subject is in it."""
    fault: str = ""
    """Why a run cannot use it, or not its caption."""
    is_used: bool = True
    """Whether a run reads it. It leaves out photos in formats that cannot be read here."""


@dataclass(frozen=True, slots=True)
class Survey:
    photos: list[Photo]
    """In the order of a run, then those that it leaves out."""
    fault: str
    """Why a run would refuse the folder as a whole, or ""."""
    notes: list[str]
    """The warnings of a run."""


def survey(folder: Path, prompt: str) -> Survey:
    """`prompt` is the instance prompt, "" for class images or if it is not known."""
    contents = look_into(folder)
    files, masks = caption_files(contents.images), mask_files(contents.images)
    photos = [_photo(path, files.get(path, ()), masks.get(path, ())) for path in contents.images]
    captions = {photo.path: photo.caption for photo in photos if photo.caption_file}
    return Survey(
        photos=[*photos, *_unreadable(contents)],
        fault="" if contents.images else why_empty(contents),
        notes=[
            *_unused(contents),
            *caption_doubts(files, captions, prompt),
            *several_masks(masks),
        ],
    )


def _photo(path: Path, captions: Sequence[Path], masks: Sequence[Path]) -> Photo:
    mask = masks[0] if masks else None
    if not captions:
        return Photo(path, mask=mask)
    try:
        return Photo(path, read_caption(captions[0]), captions[0], mask)
    except (ValueError, OSError) as error:
        return Photo(path, caption_file=captions[0], mask=mask, fault=str(error))


def _unreadable(contents: Contents) -> Iterator[Photo]:
    for name, paths in contents.unreadable.items():
        for path in paths:
            try:
                require_readable(path, name)
            except ValueError as error:
                yield Photo(path, fault=str(error), is_used=False)


def _unused(contents: Contents) -> Iterator[str]:
    """Without images, `why_empty` names them already."""
    return unused(contents) if contents.images else iter(())
