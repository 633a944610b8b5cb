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
from ..storage.names import shortened
from .buckets import bucket_step
from .cropping import to_pixels
from .examples import Example
from .masks import loss_weights
from .training_images import Layout, TrainingImage, read_training_image

logger = logging.getLogger(__name__)

Distribution = tuple[Tensor, Tensor]
"""Mean and standard deviation of latents [C, h, w], multiplied by the VAE's scaling factor."""


@dataclass(frozen=True, slots=True, eq=False)
class CachedLatents:
    """The distribution of latents that the VAE returns for one example, in fp32 on the CPU."""

    mean: Tensor
    """[C, h, w], multiplied by the VAE's scaling factor."""
    std: Tensor
    """Standard deviation [C, h, w], multiplied by the VAE's scaling factor."""
    framing: Framing
    weights: Tensor | None = None
    """[h, w]: how much each place counts in the loss, 1 on average. None: it has no mask."""
    others: tuple[Distribution, ...] = ()
    """The same subject on other backgrounds."""

    def draw(self, generator: torch.Generator) -> Tensor:
        """One sample [C, h, w]."""
        mean, std = self.mean, self.std
        if self.others:
            number = int(torch.randint(len(self.others) + 1, (), generator=generator))
            mean, std = [(mean, std), *self.others][number]
        return mean + std * torch.randn(mean.shape, generator=generator)


def encode_examples(
    examples: Sequence[Example],
    dataset: DatasetConfig,
    model: ModelFamily,
    observer: Observer,
    *,
    seed: int,
) -> dict[Example, CachedLatents]:
    """The latents of each example, in the examples' order. Images are encoded one at a time, so the
    latents of one do not depend on the others. `seed` decides random crops and colours.

    Raises ValueError if an image or its mask cannot be used, or if the model cannot train at the
    resolution.
    """
    layout = layout_of(dataset, model)
    latents: dict[Example, CachedLatents] = {}
    enlarged: dict[Path, None] = {}
    with model.on_device(model.vae):
        for example in examples:
            image = read_training_image(example, dataset, layout, seed=seed)
            if image.is_enlarged:
                enlarged[example.path] = None
            latents[example] = _encode(image, dataset.unmasked_weight, model)
            activity = "Encoding class images" if example.is_prior else "Encoding photos"
            observer.on_progress(activity, len(latents), len(examples))
    if enlarged:
        logger.warning(
            "Images smaller than the training resolution %d were enlarged, which softens them "
            "(%d): %s.",
            layout.resolution, len(enlarged), shortened([path.name for path in enlarged]),
        )  # fmt: skip
    return latents


def layout_of(dataset: DatasetConfig, model: ModelFamily) -> Layout:
    """The sizes at which a model trains. Raises ValueError if it cannot train at the resolution."""
    resolution = dataset.resolution or model.native_resolution
    step = bucket_step(model.native_resolution)
    unit = step if dataset.buckets else model.latent_factor
    if resolution % unit != 0:
        above = resolution - resolution % unit + unit
        choices = f"{above - unit} or {above}" if above > unit else f"{above}"
        reason = "with dataset.buckets" if dataset.buckets else f"for {model.name}"
        raise ValueError(
            f"dataset.resolution must be a multiple of {unit} {reason}, got {resolution}. "
            f"Choose {choices}."
        )
    return Layout(resolution, step, model.latent_factor)


@torch.no_grad()
def _encode(image: TrainingImage, unmasked_weight: float, model: ModelFamily) -> CachedLatents:
    found = []
    for version in image.versions:
        pixels = to_pixels(version, is_mirrored=image.placement.is_mirrored)
        mean, std = model.encode_pixels(pixels.unsqueeze(0).to(model.device))
        found.append((mean[0].float().cpu(), std[0].float().cpu()))
    weights = None
    if image.shares is not None:
        weights = torch.from_numpy(loss_weights(image.shares, unmasked_weight))
    (mean, std), *others = found
    return CachedLatents(mean, std, image.placement.framing, weights, tuple(others))
