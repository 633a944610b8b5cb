"""How a model's training images get noise, what the model predicts of it, and the loss. Pure tensor
functions that know nothing of models or settings.

Shapes: B batch, C latent channels, h w latents, T diffusion steps. Latents may have any number of
dimensions after B."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

NUM_TIMESTEPS = 1000
"""Of all published Stable Diffusion models."""


class NoiseProcess(ABC):
    """How noise is added to latents, and what a model predicts. Times are what the model is
    given."""

    @property
    @abstractmethod
    def prediction(self) -> str:
        """What the model predicts, as ModelSpec metadata names it: "epsilon", "v" or "flow"."""

    @property
    @abstractmethod
    def max_time(self) -> float:
        """The time at which nothing but noise is left, or just after the last time."""

    @abstractmethod
    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Return random times [count] to train at."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return the noisy latents [B, ...] at times [B]."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return what the model should predict [B, ...] at times [B]."""

    @abstractmethod
    def snr(self, times: Tensor) -> Tensor:
        """Return the signal-to-noise ratio [B] at times [B]."""

    @abstractmethod
    def error_scale(self, times: Tensor) -> Tensor:
        """Return the squared error [B] of the prediction that means a squared error of 1 in the
        latents without noise."""


@dataclass(frozen=True)
class DiscreteNoise(NoiseProcess):
    """The process of Stable Diffusion 1, 2 and XL. Times are the numbers of T timesteps.

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
        cls,
        beta_start: float,
        beta_end: float,
        *,
        is_v_prediction: bool = False,
        has_zero_terminal_snr: bool = False,
    ) -> DiscreteNoise:
        """Stable Diffusion's process: sqrt(beta) rises linearly over the timesteps."""
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, NUM_TIMESTEPS, dtype=torch.float32)
        alphas_cumprod = torch.cumprod(1 - roots**2, dim=0)
        if has_zero_terminal_snr:
            alphas_cumprod = _with_zero_terminal_snr(alphas_cumprod)
        return cls(alphas_cumprod, is_v_prediction)

    @property
    def prediction(self) -> str:
        return "v" if self.is_v_prediction else "epsilon"

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def max_time(self) -> float:
        return float(self.num_timesteps)

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether nothing but noise is left at the last timestep."""
        return bool(self.alphas_cumprod[-1] == 0)

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.num_timesteps, (count,), generator=generator)

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return sqrt(a) latents + sqrt(1 - a) noise."""
        signal, sigma = self._scales(times, latents)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return the noise, or the velocity: sqrt(a) noise - sqrt(1 - a) latents."""
        if not self.is_v_prediction:
            return noise
        signal, sigma = self._scales(times, latents)
        return signal * noise - sigma * latents

    def snr(self, times: Tensor) -> Tensor:
        """Return a / (1 - a)."""
        alphas = self._alphas(times.device)[times]
        return alphas / (1 - alphas)

    def error_scale(self, times: Tensor) -> Tensor:
        snr = self.snr(times)
        return snr + 1 if self.is_v_prediction else snr

    def _alphas(self, device: torch.device) -> Tensor:
        if device not in self._on_device:
            self._on_device[device] = self.alphas_cumprod.to(device)
        return self._on_device[device]

    def _scales(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alphas = _broadcast(self._alphas(like.device)[times], like)
        return alphas.sqrt().to(like.dtype), (1 - alphas).sqrt().to(like.dtype)


STABLE_DIFFUSION = DiscreteNoise.scaled_linear(0.00085, 0.012)
"""That of all published Stable Diffusion models which predict epsilon."""


@dataclass(frozen=True)
class FlowNoise(NoiseProcess):
    """Rectified flow (arXiv 2403.03206): straight lines from images to noise, along which the model
    predicts the direction. Times are the share of noise, 0 to 1.

    `shift` moves times towards the noise, more for larger images (equation 23)."""

    shift: float = 1.0

    @property
    def prediction(self) -> str:
        return "flow"

    @property
    def max_time(self) -> float:
        return 1.0

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the logistic function of normally distributed numbers, shifted: the middle of the
        way is the hardest."""
        times = torch.randn(count, generator=generator).sigmoid()
        return self.shift * times / (1 + (self.shift - 1) * times)

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return (1 - t) latents + t noise."""
        share = _broadcast(times, latents).to(latents.dtype)
        return (1 - share) * latents + share * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return noise - latents."""
        return noise - latents

    def snr(self, times: Tensor) -> Tensor:
        """Return ((1 - t) / t) squared."""
        return ((1 - times) / times).square()

    def error_scale(self, times: Tensor) -> Tensor:
        return times.square().reciprocal()


def min_snr_weights(process: NoiseProcess, times: Tensor, gamma: float) -> Tensor:
    """Return the loss weight of each example [B] (min-SNR, arXiv 2303.09556), with which the
    squared error of the latents is multiplied by SNR, but at most by gamma: min(SNR, gamma) / SNR
    for a model that predicts the noise, / (SNR + 1) for one that predicts the velocity."""
    return process.snr(times).clamp(max=gamma) / process.error_scale(times)


def draw_noise(shape: tuple[int, ...], offset: float, generator: torch.Generator) -> Tensor:
    """Draw noise [C, h, w] with std 1, plus one value per channel with std `offset`."""
    noise = torch.randn(shape, generator=generator)
    if offset > 0:
        noise += offset * torch.randn((shape[0], 1, 1), generator=generator)
    return noise


def squared_errors(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean squared error of each example [B], in fp32. `weights` [B, 1, ...] say how
    much each place counts, 1 on average; None: all the same."""
    errors = (prediction.float() - target.float()).square()
    if weights is not None:
        errors = errors * weights
    return errors.flatten(1).mean(dim=1)


def _broadcast(values: Tensor, like: Tensor) -> Tensor:
    """Values [B] as [B, 1, ...], with as many dimensions as `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _with_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale the square roots, so that the last one is 0 and the first one stays the same
    (arXiv 2305.08891, algorithm 1)."""
    roots = alphas_cumprod.double().sqrt()
    first, last = roots[0], roots[-1]
    return ((roots - last) * first / (first - last)).square().float()
