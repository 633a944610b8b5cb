"""The latents of every example, encoded once and cached by example.

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
from .examples import Example
from .folders import shortened
from .images import (
    CENTER,
    draw_crop_position,
    fit,
    is_smaller,
    parse_color,
    read_image,
    require_size,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class CachedLatents:
    """The distribution of latents that the VAE returns for one example, in fp32 on the CPU."""

    mean: Tensor
    """[C, h, w], multiplied by the VAE's scaling factor."""
    std: Tensor
    """Standard deviation [C, h, w], multiplied by the VAE's scaling factor."""
    framing: Framing

    def draw(self, generator: torch.Generator) -> Tensor:
        """One sample [C, h, w]."""
        return self.mean + self.std * torch.randn(self.mean.shape, generator=generator)


def encode_examples(
    examples: Sequence[Example],
    dataset: DatasetConfig,
    model: ModelFamily,
    observer: Observer,
    *,
    seed: int,
) -> dict[Example, CachedLatents]:
    """The latents of each example, in the examples' order. Images are encoded one at a time, so the
    latents of one do not depend on the others. `seed` decides random crops.

    Raises ValueError if an image cannot be read or is too small, or if the model cannot train at
    the resolution.
    """
    resolution = _resolution(dataset, model)
    step = bucket_step(model.native_resolution)
    background = parse_color(dataset.background)
    latents: dict[Example, CachedLatents] = {}
    enlarged: dict[Path, None] = {}
    with model.on_device(model.vae):
        for example in examples:
            image = read_image(example.path, background)
            size: Size = (resolution, resolution)
            if dataset.buckets:
                size = choose_size(image.width, image.height, resolution, step)
            if not dataset.allow_upscaling:
                require_size(example.path, image, size)
            elif is_smaller(image, size):
                enlarged[example.path] = None
            is_random = dataset.crop == "random"
            position = draw_crop_position(example.path, seed) if is_random else CENTER
            pixels, framing = fit(image, size, position=position, mirrored=example.mirrored)
            del image  # it may be large, and the next one is read before this name is bound again
            latents[example] = _encode(pixels, framing, model)
            activity = "Encoding class images" if example.is_prior else "Encoding photos"
            observer.on_progress(activity, len(latents), len(examples))
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
    mean, std = model.encode_pixels(pixels.unsqueeze(0).to(model.device))
    return CachedLatents(mean[0].float().cpu(), std[0].float().cpu(), framing)
