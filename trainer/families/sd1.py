"""Stable Diffusion 1.x."""

from __future__ import annotations

from collections.abc import Mapping

from .constants import Constants
from .layouts import UNET, has_linear_projections
from .stable_diffusion import StableDiffusion
from .text_encoders import TextEncoderSpec

TEXT = "cond_stage_model.transformer.text_model."
TEXT_WITHOUT_MODEL = "cond_stage_model.transformer."
"""Some trainers leave out `text_model.`; ComfyUI accepts both."""


class SD1(StableDiffusion):
    """Stable Diffusion 1.x, and models with the same layout but other widths and depths."""

    name = "Stable Diffusion 1"
    architecture = "stable-diffusion-v1"
    base_version = "sd_v1"
    usual_clip_skip = 1
    text_encoder_specs = (TextEncoderSpec(name="clip_l", prefixes=(TEXT, TEXT_WITHOUT_MODEL)),)
    defaults = Constants()

    @classmethod
    def matches(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        others = ("cond_stage_model.model.", "conditioner.", f"{UNET}label_emb.")
        is_other_generation = has_linear_projections(shapes) or any(
            key.startswith(others) for key in shapes
        )
        return cls.has_main_parts(shapes) and not is_other_generation
