"""The diffusion process: the noise schedule, the prediction target and the loss. Pure tensor
functions that know nothing of models or settings.

Shapes: B batch, C latent channels, h w latents, T diffusion steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

NUM_TIMESTEPS = 1000
"""Of all published Stable Diffusion models."""


@dataclass(frozen=True)
class NoiseSchedule:
    """How much noise each timestep has, and whether the model predicts the noise or the velocity.

    `alphas_cumprod` [T] is the share of signal power left at each timestep (DDPM, arXiv 2006.11239,
    equation 4). With `is_v_prediction` the model predicts the velocity (arXiv 2202.00512, appendix
    D), otherwise the noise.
    """

    alphas_cumprod: Tensor
    is_v_prediction: bool = False
    _on_device: dict[torch.device, Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Copies of `alphas_cumprod`. Copying them at each use would make the CPU wait for the device.
    """

    @classmethod
    def scaled_linear(
        cls, beta_start: float, beta_end: float, *, is_v_prediction: bool = False
    ) -> NoiseSchedule:
        """Stable Diffusion's schedule: sqrt(beta) rises linearly over the timesteps."""
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, NUM_TIMESTEPS, dtype=torch.float32)
        return cls(torch.cumprod(1 - roots**2, dim=0), is_v_prediction)

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noisy latents [B, C, h, w]: sqrt(a) latents + sqrt(1 - a) noise."""
        signal, sigma = self._scales(timesteps, latents)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the prediction target [B, C, h, w]: the noise or the velocity."""
        if not self.is_v_prediction:
            return noise
        signal, sigma = self._scales(timesteps, latents)
        return signal * noise - sigma * latents

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return the signal-to-noise ratio [B]: a / (1 - a)."""
        alphas = self._alphas(timesteps.device)[timesteps]
        return alphas / (1 - alphas)

    def _alphas(self, device: torch.device) -> Tensor:
        if device not in self._on_device:
            self._on_device[device] = self.alphas_cumprod.to(device)
        return self._on_device[device]

    def _scales(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self._alphas(like.device)[timesteps].view(-1, 1, 1, 1)
        return alphas.sqrt().to(like.dtype), (1 - alphas).sqrt().to(like.dtype)


def min_snr_weights(schedule: NoiseSchedule, timesteps: Tensor, gamma: float) -> Tensor:
    """Return the loss weight of each example [B] (min-SNR, arXiv 2303.09556): min(SNR, gamma) / SNR
    at its timestep, or / (SNR + 1) if the model predicts the velocity."""
    snr = schedule.snr(timesteps)
    return snr.clamp(max=gamma) / (snr + 1 if schedule.is_v_prediction else snr)


def draw_noise(shape: tuple[int, ...], offset: float, generator: torch.Generator) -> Tensor:
    """Draw noise [C, h, w] with std 1, plus one value per channel with std `offset`."""
    noise = torch.randn(shape, generator=generator)
    if offset > 0:
        noise += offset * torch.randn((shape[0], 1, 1), generator=generator)
    return noise


def squared_errors(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each example [B], in fp32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
