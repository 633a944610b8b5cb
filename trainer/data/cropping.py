"""Which part of an image is trained, at which size: scaled and cropped, never stretched.

Shapes: H W pixels."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..families.base import Framing
from ..storage.hashing import sha256_of
from .buckets import Size

CropPosition = tuple[float, float]
"""Shares, from 0 to 1, of the excess width and height that are cut off at the left and the top."""
CENTER: CropPosition = (0.5, 0.5)


@dataclass(frozen=True, slots=True)
class Placement:
    """The part of an image that is trained."""

    box: tuple[float, float, float, float]
    """Its left, top, right and bottom edge, in pixels of the image."""
    framing: Framing
    is_mirrored: bool


def require_size(path: Path, image: Image.Image, size: Size) -> None:
    """Raises ValueError if the image would have to be enlarged to cover the size."""
    if is_smaller(image, size):
        wanted = f"resolution {size[0]}" if size[0] == size[1] else f"size {size[0]}x{size[1]}"
        raise ValueError(
            f"'{path.name}' is {image.width}x{image.height} pixels, smaller than the training "
            f"{wanted}. Use larger images, lower dataset.resolution or switch on "
            "dataset.allow_upscaling."
        )


def is_smaller(image: Image.Image, size: Size) -> bool:
    """Whether the image is smaller than the size in width or height."""
    return image.width < size[0] or image.height < size[1]


def draw_crop_position(path: Path, seed: int) -> CropPosition:
    """A random position that depends only on the seed and the file's content, not on the file's
    name or the other images."""
    content = sha256_of(path)
    rng = random.Random(f"{seed} {content}")
    return rng.random(), rng.random()


def place(
    image_size: Size, size: Size, position: CropPosition = CENTER, *, is_mirrored: bool = False
) -> Placement:
    """Where an image of `image_size` is cut so that it fills `size`: it is scaled until it covers
    it, by the same factor in both directions, and the excess is cropped."""
    (across, down), (width, height) = image_size, size
    scale = max(Fraction(width, across), Fraction(height, down))
    excess = (math.floor(across * scale) - width, math.floor(down * scale) - height)
    left, top = (int((pixels + 1) * share) for pixels, share in zip(excess, position, strict=True))
    # Cropped and scaled in one step: scaling to whole pixels first would stretch by up to half a
    # pixel. ImageOps.fit crops at fractions of a pixel, up to half a pixel beside `Framing.crop`.
    corner = float(left / scale), float(top / scale)
    end = float((left + width) / scale), float((top + height) / scale)
    crop = (excess[0] - left, top) if is_mirrored else (left, top)
    framing = Framing(original_size=image_size, crop=crop, size=size)
    return Placement((*corner, *end), framing, is_mirrored)


def cut(image: Image.Image, placement: Placement) -> Image.Image:
    """That part of the image at the training size, not mirrored."""
    return image.resize(placement.framing.size, Image.Resampling.LANCZOS, placement.box)


def to_pixels(image: Image.Image, *, is_mirrored: bool = False) -> Tensor:
    """Pixels [3, H, W] in [-1, 1] of an image in mode RGB."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
    return pixels.flip(2) if is_mirrored else pixels.contiguous()


def fit(
    image: Image.Image, size: Size, *, position: CropPosition = CENTER, mirrored: bool = False
) -> tuple[Tensor, Framing]:
    """Pixels [3, H, W] in [-1, 1] of an image in mode RGB at the training size, and how it was
    cropped."""
    placement = place(image.size, size, position, is_mirrored=mirrored)
    return to_pixels(cut(image, placement), is_mirrored=mirrored), placement.framing
