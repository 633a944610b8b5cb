"""Diffusion's arithmetic: the noise schedule, what the model is asked to predict, and the loss.
Pure tensor functions; no models, no options.

Shapes: B batch, C latent channels, h w latents, T diffusion steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_TIMESTEPS = 1000
"""Of every published Stable Diffusion."""


@dataclass(frozen=True)
class NoiseSchedule:
    """How much noise each timestep carries, and what the model predicts of it.

    `alphas_cumprod` [T] is the share of signal power left at each timestep (DDPM, arXiv 2006.11239,
    equation 4); `is_v_prediction` models predict velocity (arXiv 2202.00512, appendix D), the
    others the noise.
    """

    alphas_cumprod: Tensor
    is_v_prediction: bool = False

    @classmethod
    def scaled_linear(
        cls, beta_start: float, beta_end: float, *, is_v_prediction: bool = False
    ) -> NoiseSchedule:
        """Stable Diffusion's: square roots of beta evenly spaced over the timesteps."""
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, NUM_TIMESTEPS, dtype=torch.float32)
        return cls(torch.cumprod(1 - roots**2, dim=0), is_v_prediction)

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents [B, C, h, w]: sqrt(a) latents + sqrt(1 - a) noise."""
        signal, sigma = self._scales(timesteps, latents)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model should predict [B, C, h, w]."""
        if not self.is_v_prediction:
            return noise
        signal, sigma = self._scales(timesteps, latents)
        return signal * noise - sigma * latents

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio [B]: a / (1 - a)."""
        alphas = self.alphas_cumprod.to(timesteps.device)[timesteps]
        return alphas / (1 - alphas)

    def _scales(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self.alphas_cumprod.to(like.device)[timesteps].view(-1, 1, 1, 1)
        return alphas.sqrt().to(like.dtype), (1 - alphas).sqrt().to(like.dtype)


def min_snr_weights(schedule: NoiseSchedule, timesteps: Tensor, gamma: float) -> Tensor:
    """Loss weight of each example [B] from its own timestep (min-SNR, arXiv 2303.09556): min(SNR,
    gamma) over SNR, or over SNR + 1 where velocity is predicted."""
    snr = schedule.snr(timesteps)
    return snr.clamp(max=gamma) / (snr + 1 if schedule.is_v_prediction else snr)


def draw_noise(shape: tuple[int, ...], offset: float, generator: torch.Generator) -> Tensor:
    """Noise [C, h, w] of deviation 1, plus per channel a shared part of deviation `offset`."""
    noise = torch.randn(shape, generator=generator)
    if offset > 0:
        noise += offset * torch.randn((shape[0], 1, 1), generator=generator)
    return noise


def squared_errors(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each example [B], in fp32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
