"""Everything specific to one Stable Diffusion generation: detects the family of a checkpoint and
loads it. Does not know which method trains the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..settings.config import ModelOptions
from . import clip_skip
from .averages import leave_out_averages
from .base import ModelFamily
from .clip_skip import LAST_LAYER, choose_clip_skip, files_of
from .embedding import Embedding
from .files import CheckpointFile
from .kinds import describe, scale_of_quantized
from .layouts import VAE
from .lora_file import LoraFile, patch
from .networks import FP32, NumberFormats
from .sd1 import SD1
from .sd2 import SD2
from .sdxl import SDXL
from .vae_file import open_vae

FAMILIES: tuple[type[ModelFamily], ...] = (SD1, SD2, SDXL)
KNOWN = "Stable Diffusion 1, 2 or XL"
DEFAULT_OPTIONS = ModelOptions()


def load(
    path: Path,
    device: torch.device,
    embedding: Path | None = None,
    options: ModelOptions = DEFAULT_OPTIONS,
    formats: NumberFormats = FP32,
) -> ModelFamily:
    """Load a checkpoint into main memory, frozen, with its weights in these formats, to compute on
    the device. `embedding` is the file of a textual inversion whose placeholder captions may then
    contain. Raises FileNotFoundError or ValueError if a file cannot be used, before any weight is
    read."""
    source = open_model(path, options)
    textual_inversion = Embedding.read(embedding) if embedding else None
    family = family_of(source)
    files = files_of(path, embedding, options.loras)
    chosen = choose_clip_skip(options.clip_skip, files, family.usual_clip_skip)
    constants = family.read_constants(source, options.prediction_type)
    model = family.load(source, constants, device, chosen, formats)
    if textual_inversion:
        model.add_embedding(textual_inversion)
    return model


def open_model(path: Path, options: ModelOptions = DEFAULT_OPTIONS) -> CheckpointFile:
    """Open a checkpoint file, with what the options replace or change in it: its VAE, and weights
    that LoRAs change. Raises FileNotFoundError or ValueError if a file cannot be used."""
    source = CheckpointFile(path)
    if options.prediction_type != "auto":
        source.overrides["prediction_type"] = options.prediction_type
    family = family_of(source)
    leave_out_averages(source)
    if options.vae:
        replacement = open_vae(options.vae)
        source.replace_vae(replacement, VAE)
        source.overrides["vae_sha256"] = replacement.sha256()
    if options.loras:
        constants = family.read_constants(source, options.prediction_type)
        networks = family.plan_networks(source, constants, LAST_LAYER)
        loras = {LoraFile(lora): strength for lora, strength in options.loras_with_strengths}
        patch(source, family.lora_layers_of(networks), loras, family.name)
    return source


def default_clip_skip(path: Path, embedding: Path | None = None, loras: Sequence[Path] = ()) -> int:
    """The clip skip that these files are used with if none is set. Raises FileNotFoundError or
    ValueError if the checkpoint cannot be used."""
    usual = family_of(CheckpointFile(path)).usual_clip_skip
    return clip_skip.default_clip_skip(files_of(path, embedding, loras), usual)


def family_of(source: CheckpointFile) -> type[ModelFamily]:
    """The family of a checkpoint, by the names and shapes of its tensors. For a quantized file
    or one of another kind, raises ValueError saying what it seems to be."""
    if scale := scale_of_quantized(source.shapes):
        raise ValueError(
            f"'{source.name}' is quantized (scaled fp8 or similar): its weights are stored as "
            f"coarse numbers with separate scales, such as '{scale}', to draw with less memory. "
            "They cannot be trained. Choose the fp16, bf16 or fp32 version of this checkpoint."
        )
    for family in FAMILIES:
        if family.matches(source.shapes):
            return family
    raise ValueError(
        f"'{source.name}' is {describe(source.shapes)}, not a {KNOWN} checkpoint. Choose one that "
        "ComfyUI's Load Checkpoint reads."
    )
