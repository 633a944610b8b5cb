"""Draws images from prompts with the model's current weights. A seed alone decides an image's
initial noise and all noise added later, independent of the batch; the process-wide random
generators are not touched.

Shapes: B batch, C latent channels, H W pixels, h w latents."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .. import memory, precision
from ..families.base import Conditioning, Framing, ModelFamily
from ..observer import Observer
from ..settings.config import SamplingConfig
from . import schedulers

logger = logging.getLogger(__name__)


Encoded = dict[str, Conditioning]
"""The conditioning of prompts, each as a batch of one."""


def sample(
    model: ModelFamily, prompts: Sequence[str], sampling: SamplingConfig, *,
    size: tuple[int, int] | None = None, observer: Observer | None = None,
    encoded: Encoded | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """One image [H, W, 3] uint8 per prompt; image i uses `sampling.seed` + i. `size` is width and
    height in pixels; None: the model's native resolution. `encoded`: the prompts whose conditioning
    for this size is known; the others are added to it."""
    requests = [(prompt, sampling.seed + i) for i, prompt in enumerate(prompts)]
    return list(
        sample_each(model, requests, sampling, size=size, observer=observer, encoded=encoded)
    )


def sample_each(
    model: ModelFamily, requests: Sequence[tuple[str, int]], sampling: SamplingConfig, *,
    size: tuple[int, int] | None = None, observer: Observer | None = None,
    encoded: Encoded | None = None,
) -> Iterator[np.ndarray]:  # fmt: skip
    """Yield an image [H, W, 3] uint8 for each (prompt, seed), as soon as it is decoded.
    `sampling.seed` is not used. Raises ValueError for a size that the model cannot draw."""
    size = size or (model.native_resolution, model.native_resolution)
    _check_size(size, model.latent_factor)
    encoded = {} if encoded is None else encoded
    prompts = {prompt for prompt, _ in requests} | {sampling.negative_prompt}
    encoded |= encode_prompts(model, prompts - encoded.keys(), size)
    batches = _batches(requests, encoded, sampling)
    with (
        memory.explained(
            f"while {min(sampling.batch_size, len(requests))} images of {size[0]}x{size[1]} pixels "
            "were drawn at once",
            lambda: "Draw fewer at once (batch_size), or smaller ones.",
        ),
        model.on_device(model.unet),
        model.on_device(model.vae),
    ):
        for batch in batches:
            yield from _sample_batch(
                model, batch, sampling, size=size, observer=observer or Observer()
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    seeds: list[int]
    conditional: Conditioning
    unconditional: Conditioning
    """Encodes the negative prompt."""
    number: int
    """Counted from 0."""
    num_batches: int


def _batches(
    requests: Sequence[tuple[str, int]], encoded: Encoded, sampling: SamplingConfig
) -> list[_Batch]:
    starts = range(0, len(requests), sampling.batch_size)
    return [
        _Batch(
            seeds=[seed for _, seed in batch],
            conditional=Conditioning.stack([encoded[prompt] for prompt, _ in batch]),
            unconditional=Conditioning.stack([encoded[sampling.negative_prompt]] * len(batch)),
            number=number,
            num_batches=len(starts),
        )
        for number, start in enumerate(starts)
        for batch in [requests[start : start + sampling.batch_size]]
    ]


@torch.no_grad()
def _sample_batch(
    model: ModelFamily, batch: _Batch, sampling: SamplingConfig, *, size: tuple[int, int],
    observer: Observer,
) -> Iterator[np.ndarray]:  # fmt: skip
    scheduler = schedulers.build(sampling.scheduler, model.noise, sampling.steps)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in batch.seeds]
    latents = _initial_noise(model, generators, size) * schedulers.initial_scale(scheduler)
    num_steps = len(scheduler.timesteps)
    with _eval_mode(model):
        for done, timestep in enumerate(scheduler.timesteps, start=1):
            noisy_latents = schedulers.scale_input(scheduler, latents, timestep)
            timesteps = timestep.expand(len(latents)).to(latents.device)
            prediction = _guided_prediction(
                model, noisy_latents, timesteps, batch, sampling.guidance_scale
            )
            latents = schedulers.step(
                scheduler, prediction, timestep=timestep, latents=latents, generators=generators
            )
            observer.on_progress(
                "Sampling", batch.number * num_steps + done, batch.num_batches * num_steps
            )
    # One at a time: the decoder's activations need many times the memory of the U-Net's.
    for one, seed in zip(latents, batch.seeds, strict=True):
        yield _to_image(_decode(model, one[None]), seed)


def _guided_prediction(
    model: ModelFamily, noisy_latents: Tensor, timesteps: Tensor, batch: _Batch, scale: float
) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598). In fp32: it multiplies a small difference, of
    which half precision would keep few bits."""
    conditional = model.predict(noisy_latents, timesteps, batch.conditional).float()
    if scale == 1:
        return conditional
    unconditional = model.predict(noisy_latents, timesteps, batch.unconditional).float()
    return unconditional + scale * (conditional - unconditional)


def _decode(model: ModelFamily, latents: Tensor) -> Tensor:
    """Pixels [1, 3, H, W] of the latents [1, C, h, w] of one image."""
    with precision.decoding(model.device), _eval_mode(model):
        return model.decode_latents(latents).float()


def _initial_noise(
    model: ModelFamily, generators: list[torch.Generator], size: tuple[int, int]
) -> Tensor:
    """Noise [B, C, h, w] on the model's device, each image's from its own generator. Drawn on the
    CPU, whose random numbers are the same on every machine."""
    width, height = (side // model.latent_factor for side in size)
    shape = (model.latent_channels, height, width)
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    return noise.to(model.device)


@torch.no_grad()
def encode_prompts(model: ModelFamily, prompts: set[str], size: tuple[int, int]) -> Encoded:
    """The conditioning of each prompt for images of a width and height in pixels."""
    if not prompts:
        return {}
    framing = Framing(original_size=size, crop=(0, 0), size=size)
    _warn_of_cut_prompts(model, prompts)
    with _eval_mode(model), model.on_device(model.text_encoders):
        return {
            prompt: model.with_framings(model.encode_captions([prompt]), [framing])
            for prompt in prompts
        }


def _warn_of_cut_prompts(model: ModelFamily, prompts: set[str]) -> None:
    for prompt in sorted(prompts):
        # Once per prompt: previews draw the same prompts again and again.
        if cut := model.tokenizer.newly_cut_text(prompt):
            logger.warning(
                "The prompt %r is longer than the text encoder can read. Its end is ignored: %r. "
                "Shorten the prompt.", prompt, cut,
            )  # fmt: skip


@contextmanager
def _eval_mode(model: ModelFamily) -> Iterator[None]:
    """Put the model in evaluation mode (no dropout) and restore each module's mode afterwards."""
    parts: list[nn.Module] = [model.unet, model.vae, model.text_encoders]
    training = [module for part in parts for module in part.modules() if module.training]
    for part in parts:
        part.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _to_image(pixels: Tensor, seed: int) -> np.ndarray:
    """Convert pixels [1, 3, H, W] in [-1, 1] to an image [H, W, 3] uint8. NaN and infinite pixels
    become black, with a warning."""
    values = pixels[0].float().cpu()
    if not values.isfinite().all():
        logger.warning(
            "The image of seed %d is black where the model produced NaN. Choose fp32 or bf16 "
            "precision; if the model was trained, lower the learning rate and train again.",
            seed,
        )
    levels = ((values.nan_to_num(-1, -1, -1) + 1) * 127.5).round().clamp(0, 255)
    return levels.permute(1, 2, 0).to(torch.uint8).numpy()


def _check_size(size: tuple[int, int], multiple: int) -> None:
    if any(side < 1 or side % multiple for side in size):
        raise ValueError(
            f"Image width and height must be multiples of {multiple}, got {size[0]}x{size[1]}. The "
            f"nearest is {_nearest(size[0], multiple)}x{_nearest(size[1], multiple)}."
        )


def _nearest(side: int, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple
