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
from ..trainer.data.images import parse_color, read_image
from ..trainer.observer import Observer

MAX_PREVIEWS = 16
"""Images in the preview of a folder: each takes 3 MB of memory while ComfyUI caches the output."""


def to_batch(images: Sequence[np.ndarray | Image.Image]) -> Tensor:
    """IMAGE [B, H, W, 3] in [0, 1] from images of one size."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 255


def to_arrays(batches: Sequence[Tensor]) -> list[np.ndarray]:
    """The images [H, W, 3] uint8 of IMAGE batches."""
    return [image for batch in batches for image in _levels(batch)[..., :3].numpy()]


def save_batches(batches: Sequence[Tensor], folder: Path) -> Path:
    """Save IMAGE batches as PNG files in one subfolder named by their content, and return it."""
    levels = [_levels(batch) for batch in batches]
    images = [Image.fromarray(array) for batch in levels for array in batch.numpy()]
    digest = hashlib.sha256()
    for batch in levels:
        digest.update(repr(batch.shape).encode() + batch.numpy().tobytes())
    target = folder / digest.hexdigest()[:16]
    target.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        content = BytesIO()
        image.save(content, format="PNG")
        _write(target / f"{number:04d}.png", content.getvalue())
    return target


def preview(
    paths: Sequence[Path], side: int, observer: Observer, *, color: str = "white"
) -> Tensor:
    """IMAGE [B, side, side, 3] with the middle of the first `MAX_PREVIEWS` images. Raises
    ValueError if any image, also a later one, cannot be read."""
    background, shown = parse_color(color), []
    for done, path in enumerate(paths, start=1):
        image = read_image(path, background)
        if done <= MAX_PREVIEWS:
            pixels, _ = fit(image, (side, side))
            shown.append((pixels.permute(1, 2, 0) + 1) / 2)
        del image  # it may be large, and the next one is read before this name is bound again
        observer.on_progress("Reading", done, len(paths))
    return torch.stack(shown).clamp(0, 1)


def _levels(batch: Tensor) -> Tensor:
    return (batch.detach().cpu().clone().float() * 255).round().clamp(0, 255).to(torch.uint8)


def _write(path: Path, content: bytes) -> None:
    """Skip a file that exists with this size: its folder is named by the content."""
    if path.exists() and path.stat().st_size == len(content):
        return
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)
