"""Finds the images to train on and their captions. Does not decode any image."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..settings.config import DatasetConfig
from ..storage.names import printable, shortened
from .captions import CaptionFiles, missing_subject, read_caption
from .folders import image_format, images_in
from .formats import IMAGE_ENDINGS, require_readable
from .masks import mask_files, several_masks, split, unused_masks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Example:
    """One image to train on. Serves as the key of its latents."""

    path: Path
    captions: tuple[str, ...]
    """One caption, or several, one of which is drawn at each use."""
    is_prior: bool = False
    """Whether it is a class image rather than a photo of the subject."""
    mirrored: bool = False
    mask: Path | None = None
    """An image in which the subject is white, beside the photo."""
    has_own_caption: bool = field(default=False, compare=False)
    """Whether a file beside the image has its caption. Otherwise it gets the prompt."""


def find_examples(
    entries: Sequence[Path],
    prompt: str,
    *,
    is_prior: bool = False,
    uses_masks: bool = False,
    quiet: bool = False,
) -> list[Example]:
    """The images of these folders and files, in the given order. A folder's images are sorted by
    name, numbers by value. An image's caption is the text file beside it, or else the prompt; the
    files that are its mask are found beside it, too, and are no images of their own.
    Logs a warning about everything that looks like a user's data and is not used, unless `quiet`.

    Raises FileNotFoundError if an entry does not exist, and ValueError if a folder has no images, a
    file is not an image that can be read, an image is listed twice, or a caption is not UTF-8.
    """
    paths: list[Path] = []
    for entry in entries:
        paths += images_in(entry, quiet=quiet) if entry.is_dir() else [_named_image(entry)]
    for path, times in Counter(paths).items():
        if times > 1:
            raise ValueError(f"'{path}' is named {times} times. Name each image once.")
    paths, _ = split(paths)  # patterns such as *.png list masks too
    files, masks = caption_files(paths), mask_files(paths)
    captions = {image: read_caption(found[0]) for image, found in files.items()}
    if not quiet:
        doubts = several_masks(masks) if uses_masks else unused_masks(masks, is_prior=is_prior)
        for message in [*caption_doubts(files, captions, "" if is_prior else prompt), *doubts]:
            logger.warning(message)
    captions = {image: caption for image, caption in captions.items() if caption}
    return [
        Example(
            path,
            (captions.get(path, prompt),),
            is_prior,
            mask=masks[path][0] if uses_masks and path in masks else None,
            has_own_caption=path in captions,
        )
        for path in paths
    ]


def find_photos(dataset: DatasetConfig, *, quiet: bool = False) -> list[Example]:
    """The photos of a run. Raises the errors of `find_examples`, and ValueError if none has a mask
    although the settings need masks."""
    uses_masks = dataset.masks != "off"
    photos = find_examples(dataset.photos, dataset.prompt, uses_masks=uses_masks, quiet=quiet)
    has_masks = dataset.masks == "alpha" or any(photo.mask for photo in photos)
    if dataset.random_backgrounds and not has_masks:
        name = photos[0].path
        raise ValueError(
            f"dataset.random_backgrounds is {dataset.random_backgrounds}, but no photo has a mask. "
            f"Put masks beside the photos, such as '{name.stem}-mask.png' beside '{name.name}'; "
            "set dataset.masks to alpha if the photos are transparent; or set "
            "dataset.random_backgrounds to 0."
        )
    return photos


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
                "ignored: '%s'. Shorten the caption.", printable(path.name), cut,
            )  # fmt: skip


def _named_image(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"'{path}' does not exist. Name a folder of images, or images.")
    name = image_format(path) if path.is_file() else ""  # reading a pipe would wait forever
    if not name:
        raise ValueError(
            f"'{path}' is not a supported image. Use {', '.join(IMAGE_ENDINGS)}, or a folder."
        )
    require_readable(path, name)
    return path


def caption_files(images: Iterable[Path]) -> dict[Path, list[Path]]:
    """The caption files of the images that have any, first the one to use."""
    images = list(images)
    folders = {folder: CaptionFiles(folder.iterdir()) for folder in {p.parent for p in images}}
    return {image: found for image in images if (found := folders[image.parent].of(image))}


def caption_doubts(
    files: Mapping[Path, Sequence[Path]], captions: Mapping[Path, str], prompt: str
) -> Iterator[str]:
    """Warnings about the caption files of images and what the first file of each says. An empty
    file is no caption. `prompt` is the instance prompt, "" for class images."""
    for image, found in files.items():
        if len(found) > 1:
            unused = shortened([file.name for file in found[1:]])
            yield (
                f"'{printable(image.name)}' has several captions. Only "
                f"'{printable(found[0].name)}' is used, and not {unused}. Keep one of them."
            )
    if long := [files[image][0].name for image, text in captions.items() if "\n" in text]:
        yield (
            "All lines of a caption are joined into one prompt. Captions with several lines: "
            f"{shortened(long)}. A photo has only one caption."
        )
    own = {image: caption for image, caption in captions.items() if caption}
    if message := missing_subject(own, prompt):
        yield message
