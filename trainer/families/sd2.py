"""Stable Diffusion 2.0 and 2.1, for 512 and for 768 pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .constants import Constants
from .files import CheckpointFile
from .layouts import ADDED, UNET, has_linear_projections
from .stable_diffusion import StableDiffusion
from .text_encoders import TextEncoderSpec

TELLING_WEIGHT = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
MIN_STD_OF_V = 0.09
"""ComfyUI takes a model for one that predicts v if the standard deviation of that weight is higher
(`SD20.model_type` in its `supported_models.py`)."""


class SD2(StableDiffusion):
    """Stable Diffusion 2.x. Those for 768 pixels predict v, the others epsilon."""

    name = "Stable Diffusion 2"
    architecture = "stable-diffusion-v2-512"
    architecture_of_v = "stable-diffusion-v2-768-v"
    base_version = "sd_v2"
    usual_clip_skip = 2
    text_encoder_specs = (
        TextEncoderSpec(
            name="clip_h",
            prefixes=("cond_stage_model.model.", "conditioner.embedders.0.model."),
            is_open_clip=True,
        ),
    )
    defaults = Constants(unet_heads=0, text_heads=0)
    defaults_of_v = Constants(unet_heads=0, text_heads=0, is_v_prediction=True, resolution=768)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.constants.is_v_prediction:
            self.architecture = self.architecture_of_v

    @classmethod
    def matches(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        is_other_generation = not has_linear_projections(shapes) or ADDED in shapes
        return cls.has_main_parts(shapes) and not is_other_generation

    @classmethod
    def usual_constants(cls, source: CheckpointFile) -> Constants:
        return cls.defaults_of_v if _looks_like_v(source) else cls.defaults


def _looks_like_v(source: CheckpointFile) -> bool:
    if TELLING_WEIGHT not in source.shapes:
        return False
    return source.tensor(TELLING_WEIGHT).float().std(correction=0).item() > MIN_STD_OF_V
