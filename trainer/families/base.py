"""The contract between one Stable Diffusion generation and everything that trains or samples it.

Shapes: B batch, C latent channels, H W pixels, h w latents, L tokens, D width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ..diffusion import NoiseSchedule

if TYPE_CHECKING:
    from typing import Self  # Python 3.11's, and only type checkers read it


@dataclass(frozen=True, slots=True)
class Framing:
    """How a picture was brought to its training size; Stable Diffusion XL is told it."""

    original_size: tuple[int, int]
    """Width and height of the file, in pixels."""
    crop: tuple[int, int]
    """Pixels cut off at the left and the top, after resizing."""
    size: tuple[int, int]
    """Width and height trained at, in pixels."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the U-Net is told besides noisy latents and timesteps."""

    hidden: Tensor
    """Text encoder output [B, L, D]."""

    def to(self, device: torch.device) -> Conditioning:
        return Conditioning(self.hidden.to(device))

    @staticmethod
    def stack(parts: list[Conditioning]) -> Conditioning:
        return Conditioning(torch.cat([part.hidden for part in parts]))


class ModelFamily(ABC):
    """A loaded checkpoint that can encode, predict, and name its weights as its file does."""

    name: ClassVar[str]
    """For people: "Stable Diffusion 1"."""
    path: Path
    """The file it came from."""
    unet: nn.Module
    vae: nn.Module
    text_encoders: nn.ModuleList
    schedule: NoiseSchedule
    native_resolution: int
    """Width and height it was made for, in pixels."""
    latent_factor: int
    """Pixels per latent, along each side."""

    @classmethod
    @abstractmethod
    def matches(cls, keys: Collection[str]) -> bool:
        """Whether a file with these tensor names is of this family."""

    @classmethod
    @abstractmethod
    def load(cls, path: Path, device: torch.device) -> Self:
        """The model in fp32, frozen and in eval mode. ValueError names what the file lacks."""

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation [B, C, h, w] of the scaled latents of pixels [B, 3, H, W]."""

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in about [-1, 1] of scaled latents [B, C, h, w]."""

    @abstractmethod
    def encode_captions(self, captions: list[str], framings: list[Framing]) -> Conditioning: ...

    @abstractmethod
    def cut_text(self, caption: str) -> str:
        """The end of the caption beyond what the text encoder can read; "" if there is none."""

    @abstractmethod
    def predict(self, noisy_latents: Tensor, timesteps: Tensor, given: Conditioning) -> Tensor:
        """The U-Net's prediction [B, C, h, w]."""

    @abstractmethod
    def file_names(self) -> dict[str, Tensor]:
        """Every parameter of the U-Net and the text encoders, as it is now, under the name and in
        the shape that the checkpoint file gives it. Views, on the model's device."""

    @property
    def latent_channels(self) -> int:
        return int(self.unet.config.in_channels)
