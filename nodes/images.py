"""Pictures between ComfyUI's IMAGE batches, arrays and files.

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

from ..trainer.data.images import fit, parse_color, read_image
from ..trainer.observer import Observer

MAX_PREVIEWS = 16
"""Pictures in the preview of a folder: each takes 3 MB of ComfyUI's memory for as long as its cache
keeps it."""


def to_batch(images: Sequence[np.ndarray | Image.Image]) -> Tensor:
    """IMAGE [B, H, W, 3] in [0, 1] of pictures of one size."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 255


def to_arrays(batch: Tensor) -> list[np.ndarray]:
    """The pictures [H, W, 3] uint8 of an IMAGE batch."""
    return list(_levels(batch)[..., :3].numpy())


def save_batch(batch: Tensor, folder: Path) -> Path:
    """The folder below `folder` that holds an IMAGE batch as PNG files, named by their content."""
    levels = _levels(batch)
    pictures = [Image.fromarray(array) for array in levels.numpy()]
    digest = hashlib.sha256(repr(levels.shape).encode() + levels.numpy().tobytes()).hexdigest()
    target = folder / digest[:16]
    target.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        content = BytesIO()
        picture.save(content, format="PNG")
        _write(target / f"{number:04d}.png", content.getvalue())
    return target


def preview(
    paths: Sequence[Path], side: int, observer: Observer, *, color: str = "white"
) -> Tensor:
    """IMAGE [B, side, side, 3] of the middles of the first pictures. ValueError for any, also of
    the others, that cannot be read."""
    background, shown = parse_color(color), []
    for done, path in enumerate(paths, start=1):
        picture = read_image(path, background)
        if done <= MAX_PREVIEWS:
            pixels, _ = fit(picture, (side, side))
            shown.append((pixels.permute(1, 2, 0) + 1) / 2)
        observer.on_progress("Reading", done, len(paths))
    return torch.stack(shown).clamp(0, 1)


def _levels(batch: Tensor) -> Tensor:
    return (batch.detach().cpu().clone().float() * 255).round().clamp(0, 255).to(torch.uint8)


def _write(path: Path, content: bytes) -> None:
    """Leaves a file of that size alone: its name says what is in it."""
    if path.exists() and path.stat().st_size == len(content):
        return
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)
