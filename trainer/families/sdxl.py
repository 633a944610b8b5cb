"""Stable Diffusion XL and its descendants, such as Illustrious, NoobAI, Pony and Animagine."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .. import hardware
from .base import Conditioning, Framing
from .constants import Constants
from .layouts import ADDED
from .stable_diffusion import StableDiffusion
from .text_encoders import TextEncoderSpec


class SDXL(StableDiffusion):
    """Stable Diffusion XL. Its U-Net is also given the pooled output of the second text encoder and
    the sizes of the image (arXiv 2307.01952, section 2.2)."""

    name = "Stable Diffusion XL"
    architecture = "stable-diffusion-xl-v1-base"
    base_version = "sdxl_base_v1-0"
    usual_clip_skip = 2
    tells_prediction_by_tensors = True
    has_checkpoint_names_in_loras = True
    text_encoder_specs = (
        TextEncoderSpec(
            name="clip_l", prefixes=("conditioner.embedders.0.transformer.text_model.",)
        ),
        TextEncoderSpec(
            name="clip_g",
            prefixes=("conditioner.embedders.1.model.",),
            is_open_clip=True,
            is_pooled=True,
        ),
    )
    defaults = Constants(
        unet_heads=0, text_heads=0, text_norm=False, latent_scale=0.13025, resolution=1024
    )

    @classmethod
    def matches(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        # The refiner has only the second text encoder, as embedder 0.
        has_text = any(spec.is_in(shapes) for spec in cls.text_encoder_specs)
        return cls.has_main_parts(shapes) and ADDED in shapes and has_text

    def with_framings(self, conditioning: Conditioning, framings: list[Framing]) -> Conditioning:
        sizes = hardware.move(torch.tensor([_sizes(each) for each in framings]), self.device)
        return Conditioning(conditioning.hidden, {**conditioning.added, "time_ids": sizes})


def _sizes(framing: Framing) -> list[float]:
    """Height and width of the image before resizing, the height and width cut off at top and left,
    and height and width of the result."""
    pairs = (framing.original_size, framing.crop, framing.size)
    return [float(number) for width, height in pairs for number in (height, width)]
