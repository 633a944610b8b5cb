"""The latents of every example, encoded once and kept under the example itself.

Shapes: C latent channels, H W pixels, h w latents."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..families.base import Framing, ModelFamily
from ..observer import Observer
from ..settings.config import DatasetConfig
from .buckets import Size, bucket_step, choose_size
from .examples import Example, shortened
from .images import CENTER, draw_place, fit, is_smaller, parse_color, read_image, require_size

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class CachedLatents:
    """What the VAE makes of one example: a normal distribution of latents, on the CPU in fp32."""

    mean: Tensor
    """[C, h, w], already multiplied by the VAE's scaling factor, as is the deviation."""
    deviation: Tensor
    """[C, h, w]."""
    framing: Framing

    def draw(self, generator: torch.Generator) -> Tensor:
        """One sample [C, h, w]."""
        return self.mean + self.deviation * torch.randn(self.mean.shape, generator=generator)


def encode_examples(
    examples: Sequence[Example],
    dataset: DatasetConfig,
    model: ModelFamily,
    observer: Observer,
    *,
    seed: int,
) -> dict[Example, CachedLatents]:
    """The latents of each example, in the examples' order. One image at a time, so that they do not
    depend on which others there are; `seed` decides random crops.

    ValueError for an image that cannot be read or is too small, and for a resolution that the model
    cannot train at.
    """
    resolution = _resolution(dataset, model)
    step = bucket_step(model.native_resolution)
    background = parse_color(dataset.background)
    latents: dict[Example, CachedLatents] = {}
    enlarged: dict[Path, None] = {}
    for done, example in enumerate(examples, start=1):
        image = read_image(example.path, background)
        size: Size = (resolution, resolution)
        if dataset.buckets:
            size = choose_size(image.width, image.height, resolution, step)
        if not dataset.allow_upscaling:
            require_size(example.path, image, size)
        elif is_smaller(image, size):
            enlarged[example.path] = None
        place = draw_place(example.path, seed) if dataset.crop == "random" else CENTER
        pixels, framing = fit(image, size, place=place, mirrored=example.mirrored)
        latents[example] = _encode(pixels, framing, model)
        observer.on_progress("Encoding photos", done, len(examples))
    if enlarged:
        logger.warning(
            "Images smaller than the training resolution %d were enlarged, which softens them "
            "(%d): %s.", resolution, len(enlarged), shortened([path.name for path in enlarged]),
        )  # fmt: skip
    return latents


def _resolution(dataset: DatasetConfig, model: ModelFamily) -> int:
    resolution = dataset.resolution or model.native_resolution
    step = bucket_step(model.native_resolution) if dataset.buckets else model.latent_factor
    if resolution % step != 0:
        above = resolution - resolution % step + step
        choices = f"{above - step} or {above}" if above > step else f"{above}"
        reason = "with dataset.buckets" if dataset.buckets else f"for {model.name}"
        raise ValueError(
            f"dataset.resolution must be a multiple of {step} {reason}, got {resolution}. "
            f"Choose {choices}."
        )
    return resolution


@torch.no_grad()
def _encode(pixels: Tensor, framing: Framing, model: ModelFamily) -> CachedLatents:
    mean, deviation = model.encode_pixels(pixels.unsqueeze(0).to(model.device))
    return CachedLatents(mean[0].float().cpu(), deviation[0].float().cpu(), framing)
