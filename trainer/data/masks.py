"""Masks, which say where the subject is in a photo: white is the subject, black its surroundings.

Shapes: h w latents, or pixels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from ..storage.names import printable, shortened
from .buckets import Size
from .captions import key
from .cropping import Placement
from .formats import format_of, is_readable
from .images import on_background, read_with_alpha

_MASK = re.compile(r"(.+)[-_. ]mask(?:label)?( \(\d+\))?", re.IGNORECASE)
"""With the number that a file gets whose name is taken: photo and mask then have the same."""
BLACK = (0, 0, 0)
MAX_COLOUR = 8
"""Mean difference of red, green and blue, of 255 levels, up to which an image counts as grey.
Lossy compression makes small differences."""
MIN_LATENTS = 1
"""The area of a subject that can be learned."""


def split(
    images: Iterable[Path], others: Iterable[Path] = ()
) -> tuple[list[Path], dict[Path, list[Path]]]:
    """Tells photos from masks, such as dog-mask.png, dog_masklabel.png or dog.mask.png beside
    dog.jpg. Returns the photos and, for each photo that has any, its masks. Masks of `others`,
    which are photos too, are left out."""
    images, others = list(images), list(others)
    owners: dict[tuple[Path, str], list[Path]] = {}
    masks: dict[Path, list[Path]] = {}
    # A mask has a longer name than its photo.
    for image in sorted([*others, *images], key=lambda image: len(image.stem)):
        names = _photo_names(image)
        found = (photos for name in names if (photos := owners.get((image.parent, name))))
        if photos := next(found, None):
            masks[image] = photos
            continue
        for name in {key(image.stem), key(image.name)}:
            owners.setdefault((image.parent, name), []).append(image)
    of: dict[Path, list[Path]] = {}
    for mask in (image for image in images if image in masks):
        for photo in masks[mask]:
            of.setdefault(photo, []).append(mask)
    photos = [image for image in images if image not in masks]
    return photos, {photo: of[photo] for photo in photos if photo in of}


def _photo_names(image: Path) -> list[str]:
    """The names of photos whose mask it would be, without endings. [] if it is not named so."""
    found = _MASK.fullmatch(image.stem)
    return [key(f"{found[1]}{found[2] or ''}"), key(found[1])] if found else []


def mask_files(photos: Sequence[Path]) -> dict[Path, list[Path]]:
    """The masks beside the photos that have any, first the one to use."""
    folders = dict.fromkeys(photo.parent for photo in photos)
    candidates = sorted(chain.from_iterable(map(_candidates, folders)))
    beside = [path for path in candidates if path not in photos]
    return split([*photos, *beside])[1]


def _candidates(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        is_named_so = not path.name.startswith(".") and _MASK.fullmatch(path.stem)
        if is_named_so and path.is_file() and is_readable(format_of(path)):
            yield path


def several_masks(files: Mapping[Path, Sequence[Path]]) -> Iterator[str]:
    """A warning for each photo with more than one mask."""
    for photo, masks in files.items():
        if len(masks) > 1:
            unused = shortened([mask.name for mask in masks[1:]])
            yield (
                f"'{printable(photo.name)}' has several masks. Only '{printable(masks[0].name)}' "
                f"is used, and not {unused}. Keep one of them."
            )


def unused_masks(files: Mapping[Path, Sequence[Path]], *, is_prior: bool) -> Iterator[str]:
    """A warning if there are masks, for images that are trained without them."""
    names = list(dict.fromkeys(mask.name for masks in files.values() for mask in masks))
    reason = "class images are trained whole" if is_prior else "dataset.masks is off"
    if names:
        yield (
            f"Masks are not used, because {reason} ({len(names)}): {shortened(names)}. If these "
            "are photos, rename them."
        )


def read_mask(path: Path, photo: Path, size: Size) -> Image.Image:
    """The mask in mode L, with its own width and height. `size` is that of the upright photo.
    Transparent parts are black.

    Raises ValueError if it cannot be read, has another shape than the photo, or is not grey."""
    image = on_background(read_with_alpha(path), BLACK)
    if not _has_shape(image.size, size):
        raise ValueError(
            f"'{path.name}' is taken for the mask of '{photo.name}', but has another shape: "
            f"{image.width}x{image.height} pixels instead of {size[0]}x{size[1]}. Save the mask "
            "with the photo's width and height, both upright; if it is a photo, rename it."
        )
    small = image.reduce(max(1, min(image.size) // 256))  # differences of single pixels are noise
    if np.ptp(np.asarray(small), axis=2).mean() > MAX_COLOUR:
        raise ValueError(
            f"'{path.name}' is taken for the mask of '{photo.name}', but has colours. Save "
            "the mask in white and black; if it is a photo, rename it."
        )
    return image.convert("L")


def _has_shape(mask: Size, photo: Size) -> bool:
    """Whether the mask is the photo's size, times any factor, rounded to whole pixels."""
    (across, down), (width, height) = mask, photo
    return abs(across - down * width / height) <= 1 or abs(down - across * height / width) <= 1


def shares(mask: Image.Image, placement: Placement, size: Size) -> np.ndarray:
    """How much of each of `size` equal fields of the trained part is white [h, w], from 0 to 1.
    `placement` is that of the photo, whose size the mask need not have."""
    left, top, right, bottom = placement.box
    across = mask.width / placement.framing.original_size[0]
    down = mask.height / placement.framing.original_size[1]
    rows = _overlaps(top * down, bottom * down, size[1], mask.height)
    columns = _overlaps(left * across, right * across, size[0], mask.width)
    found: np.ndarray = rows @ (np.asarray(mask, np.float32) / 255) @ columns.T
    return found[:, ::-1].copy() if placement.is_mirrored else found


def _overlaps(start: float, end: float, count: int, length: int) -> np.ndarray:
    """How much of each of `count` equal pieces of a line, from `start` to `end`, lies in each of
    the `length` pixels below it [count, length]. Rows add up to 1."""
    edges, pixels = np.linspace(start, end, count + 1), np.arange(length)
    inside = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    covered = inside.clip(0)
    return (covered / covered.sum(axis=1, keepdims=True)).astype(np.float32)


def loss_weights(shares: np.ndarray, unmasked_weight: float) -> np.ndarray:
    """How much each latent counts in the mean squared error [h, w], 1 on average: the subject's
    share of it, and `unmasked_weight` times the rest. With 0, the error is the mean over the mask;
    with 1, over the whole image."""
    weights = shares + unmasked_weight * (1 - shares)
    found: np.ndarray = (weights / weights.mean()).astype(np.float32)
    return found


def require_subject(shares: np.ndarray, photo: Path, mask: Path | None) -> None:
    """Raises ValueError if nothing is white. `mask` is None for the transparency of the photo."""
    if shares.sum() >= MIN_LATENTS:
        return
    if mask:
        raise ValueError(
            f"The mask '{mask.name}' is black in the part of '{photo.name}' that is trained, so "
            "nothing of the photo would be learned. White is learned: invert the mask, or remove "
            "it."
        )
    raise ValueError(
        f"'{photo.name}' is transparent in all of the part that is trained, so nothing of it would "
        "be learned. Remove the photo, or set dataset.masks to auto."
    )
