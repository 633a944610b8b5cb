"""Conversion between ComfyUI's IMAGE batches, arrays and files.

Shapes: B batch, H W pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..trainer.data.cropping import fit
from ..trainer.data.examples import Example
from ..trainer.data.images import on_background, parse_color, read_with_alpha
from ..trainer.data.inspection import Inspection
from ..trainer.observer import Observer

MAX_PREVIEWS = 16
"""Images in the preview of a folder: each takes 3 MB of memory while ComfyUI caches the output."""


def to_batch(images: Sequence[np.ndarray | Image.Image]) -> Tensor:
    """IMAGE [B, H, W, 3] in [0, 1] from images of one size."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 255


def to_arrays(batches: Sequence[Tensor]) -> list[np.ndarray]:
    """The images [H, W, 3] uint8 of IMAGE batches."""
    return [image for batch in batches for image in _levels(batch)[..., :3].numpy()]


def save_batches(batches: Sequence[Tensor], folder: Path, masks: Sequence[Tensor] = ()) -> Path:
    """Save IMAGE batches as PNG files in one subfolder named by their content, and return it.
    `masks` [H, W] are none, or one for each image; they are saved beside the images."""
    levels, masks = [_levels(batch) for batch in batches], [_levels(mask) for mask in masks]
    digest = hashlib.sha256()
    for tensor in [*levels, *masks]:
        digest.update(repr(tensor.shape).encode() + tensor.numpy().tobytes())
    target = folder / digest.hexdigest()[:16]
    target.mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(array for batch in levels for array in batch.numpy()):
        _save(array, target / f"{number:04d}.png")
    for number, mask in enumerate(masks):
        _save(mask.numpy(), target / f"{number:04d}-mask.png")
    return target


def preview(
    photos: Sequence[Example],
    side: int,
    observer: Observer,
    *,
    color: str = "white",
    inspection: Inspection | None = None,
) -> Tensor:
    """IMAGE [B, side, side, 3] with the middle of the first `MAX_PREVIEWS` images. All are added to
    the inspection, and these shown in it. Raises ValueError if any image, also a later one, cannot
    be read."""
    background, shown = parse_color(color), []
    for done, photo in enumerate(photos, start=1):
        image = read_with_alpha(photo.path)
        if done <= MAX_PREVIEWS:
            pixels, _ = fit(on_background(image, background), (side, side))
            shown.append((pixels.permute(1, 2, 0) + 1) / 2)
        if inspection:
            inspection.add(photo, image, is_shown=done <= MAX_PREVIEWS)
        del image  # it may be large, and the next one is read before this name is bound again
        observer.on_progress("Reading", done, len(photos))
    return torch.stack(shown).clamp(0, 1)


def _levels(batch: Tensor) -> Tensor:
    return (batch.detach().cpu().clone().float() * 255).round().clamp(0, 255).to(torch.uint8)


def _save(array: np.ndarray, path: Path) -> None:
    content = BytesIO()
    Image.fromarray(array).save(content, format="PNG")
    _write(path, content.getvalue())


def _write(path: Path, content: bytes) -> None:
    """Skip a file that exists with this size: its folder is named by the content."""
    if path.exists() and path.stat().st_size == len(content):
        return
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)
