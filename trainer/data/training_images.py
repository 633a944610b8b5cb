"""Examples as they are trained: read, cropped, with their masks, and on plain colours if wanted.

Shapes: h w latents, or pixels."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..settings.config import DatasetConfig
from ..storage.hashing import sha256_of
from .buckets import Size, choose_size
from .cropping import CENTER, Placement, cut, draw_crop_position, is_smaller, place, require_size
from .examples import Example
from .images import Color, on_background, parse_color, read_with_alpha
from .masks import read_mask, require_subject, shares


@dataclass(frozen=True, slots=True)
class Layout:
    """The sizes that a model trains at."""

    resolution: int
    """Width and height of a square image, in pixels."""
    bucket_step: int
    latent_factor: int
    """Pixels per latent along each side."""

    def size_of(self, image: Image.Image, dataset: DatasetConfig) -> Size:
        """The width and height at which an image is trained."""
        if dataset.buckets:
            return choose_size(image.width, image.height, self.resolution, self.bucket_step)
        return self.resolution, self.resolution


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """An example as it is trained, but not mirrored yet."""

    versions: list[Image.Image]
    """In mode RGB and the training size: the image, or its subject on several colours."""
    placement: Placement
    shares: np.ndarray | None
    """The share of each latent [h, w] that shows the subject; mirrored. None: it has no mask."""
    is_enlarged: bool


def read_training_image(
    example: Example, dataset: DatasetConfig, layout: Layout, *, seed: int
) -> TrainingImage:
    """`seed` decides random crops and colours. Raises ValueError if the image or its mask cannot be
    read, if the image is too small, or if the mask does not belong to it or is black."""
    return training_image(example, read_with_alpha(example.path), dataset, layout, seed=seed)


def training_image(
    example: Example, image: Image.Image, dataset: DatasetConfig, layout: Layout, *, seed: int
) -> TrainingImage:
    """The same for an image that was read, with its alpha."""
    # It may be large, so one name for all its stages: none is kept here.
    mask = mask_of(example, dataset, image)
    colors = _colors(example, seed, dataset.random_backgrounds if mask else 0)
    behind = parse_color(dataset.background)
    image = (
        _cut_out(image, mask, example, behind) if mask and colors else on_background(image, behind)
    )
    size = layout.size_of(image, dataset)
    if not dataset.allow_upscaling:
        require_size(example.path, image, size)
    is_random = dataset.crop == "random"
    position = draw_crop_position(example.path, seed) if is_random else CENTER
    placement = place(image.size, size, position, is_mirrored=example.mirrored)
    is_enlarged = is_smaller(image, size)
    image = cut(image, placement)
    return TrainingImage(
        versions=[on_background(image, color) for color in colors] or [image],
        placement=placement,
        shares=_shares(mask, example, placement, layout) if mask else None,
        is_enlarged=is_enlarged,
    )


def mask_of(example: Example, dataset: DatasetConfig, image: Image.Image) -> Image.Image | None:
    """The mask in mode L."""
    if example.mask:
        return read_mask(example.mask, example.path, image.size)
    if dataset.masks == "alpha" and not example.is_prior and image.mode == "RGBA":
        return image.getchannel("A")
    return None


def _cut_out(image: Image.Image, mask: Image.Image, example: Example, behind: Color) -> Image.Image:
    """The image with the mask as its alpha, in mode RGBA."""
    if example.mask is None:
        return image  # its alpha is the mask
    image = on_background(image, behind).convert("RGBA")
    image.putalpha(mask.resize(image.size, Image.Resampling.BILINEAR))
    return image


def _shares(
    mask: Image.Image, example: Example, placement: Placement, layout: Layout
) -> np.ndarray:
    width, height = placement.framing.size
    found = shares(mask, placement, (width // layout.latent_factor, height // layout.latent_factor))
    require_subject(found, example.path, example.mask)
    return found


def _colors(example: Example, seed: int, count: int) -> list[Color]:
    """Random colours that depend only on the seed and the file's content."""
    side = "mirrored" if example.mirrored else "plain"
    rng = random.Random(f"background {seed} {side} {sha256_of(example.path)}")
    return [(rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(count)]
