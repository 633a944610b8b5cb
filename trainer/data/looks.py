"""What can be better about photos and masks, by their pixels: advice, no reason to refuse them.

Shapes: H W pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from PIL import Image

from ..storage.names import shortened
from .buckets import Size
from .cropping import Placement
from .masks import shares

SIDE = 512
"""The longer side, in pixels, at which sharpness is measured. Smaller photos are not enlarged."""
MIN_SHARPNESS = 0.08
"""Share of the median of all photos below which one counts as blurred. The least of 21 sharp photos
of DreamBooth's data set is 0.12; with a blur of two pixels at `SIDE` they have 0.05 or less."""
OUTLINE, MIN_CORRELATION = 16, 0.85
"""Side of the grid of brightnesses that are compared, and the correlation from which two photos
count as nearly the same. A photo that was made smaller, darker, compressed or cropped by 2 % at
each side has 0.91 or more; two different photos of that data set have 0.4 or less."""
BORDER, MAX_DISTANCE = 16, 20.0
"""Fields along a side, of which the outer ones are the border, and the mean difference, of 255
levels, between two borders that count as alike."""
MIN_ALIKE, MIN_PHOTOS = 0.75, 3
"""Share of the photos with one background that is worth a word; fewer photos are not compared."""
MIN_INSIDE = 0.9
"""Share of the subject that a crop must leave."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What advice needs of one photo."""

    size: Size
    sharpness: float
    """The variance of the Laplacian of its grey levels (Pech-Pacheco et al., Diatom autofocusing in
    brightfield microscopy, ICPR 2000)."""
    outline: np.ndarray
    """[16, 16]: how much brighter it becomes from left to right, which hardly depends on size and
    compression. Only its signs are the difference hash of Krawetz (2013); these are arbitrary where
    a photo has one colour."""
    border: np.ndarray
    """[60, 3]: the mean colours of the fields at its border."""
    has_mask: bool = False


def look_at(image: Image.Image, *, has_mask: bool = False) -> Look:
    """`image` is in mode RGB."""
    grey = image.convert("L")
    cells = np.asarray(grey.resize((OUTLINE + 1, OUTLINE), Image.Resampling.BOX), np.float32)
    fields = np.asarray(image.resize((BORDER, BORDER), Image.Resampling.BOX), np.float32)
    sides = fields[0], fields[-1], fields[1:-1, 0], fields[1:-1, -1]
    grey.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return Look(
        size=image.size,
        sharpness=_sharpness(np.asarray(grey, np.float32)),
        outline=np.diff(cells, axis=1),
        border=np.concatenate(sides),
        has_mask=has_mask,
    )


def _sharpness(grey: np.ndarray) -> float:
    if min(grey.shape) < 3:
        return 0.0
    middle = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * middle).var())


def advice(looks: Mapping[str, Look], resolution: int | None = None) -> list[str]:
    """What can be better about photos, by their names. `resolution` is that of training, None if it
    is not known."""
    groups = _duplicates(looks)
    different = {group[0]: looks[group[0]] for group in groups}
    found = [*_blurred(looks), *map(_same_photo, groups), *_same_background(different)]
    small = _small(looks, resolution) if resolution else ()
    return [*small, *filter(None, found)]


def _small(looks: Mapping[str, Look], resolution: int) -> Iterator[str]:
    if names := [name for name in looks if min(looks[name].size) < resolution]:
        yield (
            f"Smaller than the resolution {resolution} ({len(names)}): {shortened(names)}. They "
            "would have to be enlarged, which softens them. Use larger ones, or lower the "
            "resolution."
        )


def _blurred(looks: Mapping[str, Look]) -> Iterator[str]:
    if len(looks) < MIN_PHOTOS:
        return
    usual = median(look.sharpness for look in looks.values())
    names = [name for name in looks if looks[name].sharpness < MIN_SHARPNESS * usual]
    if names:
        yield (
            f"Blurred, compared with the other photos ({len(names)}): {shortened(names)}. The "
            "model learns to draw softly from them. Leave them out, or use sharper ones."
        )


def _duplicates(looks: Mapping[str, Look]) -> list[list[str]]:
    """The photos in groups of those that are nearly the same, most of them of one photo."""
    groups: list[list[str]] = []
    left = list(looks)
    while left:
        first = left[0]
        groups.append([first, *(n for n in left[1:] if _is_duplicate(looks[first], looks[n]))])
        left = [name for name in left if name not in groups[-1]]
    return groups


def _same_photo(group: Sequence[str]) -> str:
    if len(group) == 1:
        return ""
    return (
        f"Nearly the same photo ({len(group)}): {shortened(group)}. It counts several times, with "
        "its surroundings. Keep one of them."
    )


def _is_duplicate(one: Look, other: Look) -> bool:
    """Also of mirror images."""
    mirrored = -other.outline[:, ::-1]
    length = np.linalg.norm(one.outline) * np.linalg.norm(other.outline)
    likeness = max(float((one.outline * each).sum()) for each in (other.outline, mirrored))
    return bool(length > 0 and likeness >= MIN_CORRELATION * length)


def _same_background(looks: Mapping[str, Look]) -> Iterator[str]:
    """Photos with masks are left out, because their surroundings count little."""
    borders = [look.border for look in looks.values() if not look.has_mask]
    if len(borders) < MIN_PHOTOS:
        return
    alike = max(sum(_distance(one, other) <= MAX_DISTANCE for other in borders) for one in borders)
    if alike >= max(MIN_PHOTOS, MIN_ALIKE * len(borders)):
        yield (
            f"{alike} of {len(borders)} photos have the same background, which is learned with the "
            "subject. Use photos in other places, or masks."
        )


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def is_cut(mask: Image.Image, placement: Placement) -> bool:
    """Whether the crop leaves out a part of the subject."""
    left, top, right, bottom = placement.box
    across, down = placement.framing.original_size
    part = (right - left) * (bottom - top) / (across * down)
    whole = float(np.asarray(mask, np.float32).mean()) / 255
    inside = float(shares(mask, placement, (1, 1))[0, 0]) * part
    return inside < MIN_INSIDE * whole


def is_inverted(mask: Image.Image) -> bool:
    """Whether the mask is white along most of its border and black in its middle."""
    fields = np.asarray(mask.resize((8, 8), Image.Resampling.BOX), np.float32) / 255
    border = np.concatenate([fields[0], fields[-1], fields[1:-1, 0], fields[1:-1, -1]])
    return bool(border.mean() > 0.75 and fields[3:5, 3:5].mean() < 0.25)


def mask_advice(cut: Sequence[str], inverted: Sequence[str]) -> Iterator[str]:
    """`cut` are the photos whose subject is cut, `inverted` the masks that seem to be inverted."""
    if cut:
        yield (
            f"The crop cuts off a part of the subject ({len(cut)}): {shortened(cut)}. Switch on "
            "dataset.buckets, or crop these photos yourself."
        )
    if inverted:
        yield (
            f"Masks that seem to be inverted ({len(inverted)}): {shortened(inverted)}. They are "
            "white at the border and black in the middle, but the subject must be white."
        )
