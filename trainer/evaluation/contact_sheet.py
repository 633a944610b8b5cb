"""A picture of all photos as they are trained: cropped, and with their masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from ..data.training_images import TrainingImage
from ..storage.names import printable
from . import plots

SIDE, COLUMNS = 240, 5
"""Width and height of a photo's field in pixels, and fields side by side."""
EMPTY = "white"
DIMMED, STRIPE = 0.25, 40
"""Brightness of what is outside a mask, and how much brighter stripes are there, of 255 levels:
darkness alone could be the photo's."""
STRIPES = 8
"""Pixels from stripe to stripe."""


def contact_sheet(photos: Sequence[tuple[str, TrainingImage]]) -> Image.Image:
    """The photos in rows, each with its name, its size and how it is trained. Their shares must be
    those of pixels (`Layout.latent_factor` 1). What is outside a mask is dark and striped."""
    columns = max(1, min(COLUMNS, len(photos)))
    fields = [_field(photo) for _, photo in photos]
    captions = [f"{printable(name)}\n{_describe(photo)}" for name, photo in photos]
    left = -len(photos) % columns
    blank = np.asarray(Image.new("RGB", (SIDE, SIDE), EMPTY))
    return plots.grid(
        [*fields, *[blank] * left],
        columns=[""] * columns,
        rows=[""] * ((len(photos) + left) // columns),
        captions=[*captions, *[""] * left],
    )


def _field(photo: TrainingImage) -> np.ndarray:
    pixels = np.asarray(photo.versions[0], np.float32)
    if photo.placement.is_mirrored:
        pixels = pixels[:, ::-1]
    if photo.shares is not None:
        down, across = np.indices(photo.shares.shape)
        scale = max(1, max(photo.shares.shape) // SIDE)
        is_stripe = (across + down) // (scale * STRIPES // 2) % 2 == 0
        outside = pixels * DIMMED + is_stripe[..., None] * STRIPE
        pixels = outside + photo.shares[..., None] * (pixels - outside)
    image = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    return np.asarray(ImageOps.pad(image, (SIDE, SIDE), Image.Resampling.LANCZOS, color=EMPTY))


def _describe(photo: TrainingImage) -> str:
    framing = photo.placement.framing
    (across, down), (width, height) = framing.original_size, framing.size
    enlarged = ", enlarged" if photo.is_enlarged else ""
    masked = "" if photo.shares is None else f", {photo.shares.mean():.0%} subject"
    colors = f", {len(photo.versions)} colours" if len(photo.versions) > 1 else ""
    return f"{across}x{down} to {width}x{height}{enlarged}{masked}{colors}"
