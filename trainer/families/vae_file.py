"""Reads a file with a VAE: a VAE alone, or a checkpoint of which only the VAE is used."""

from __future__ import annotations

from pathlib import Path

from ..storage.names import shown_name
from .files import CheckpointFile
from .layouts import VAE

_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
"""The beginnings of names in a file of a VAE alone."""
_DIFFUSERS = ("encoder.down_blocks.", "decoder.up_blocks.", "decoder.mid_block.")


def open_vae(path: Path) -> CheckpointFile:
    """The file, with the tensors of its VAE alone, under their names in a checkpoint. Raises
    FileNotFoundError if it does not exist, ValueError if it has no VAE in a checkpoint's layout.
    """
    file = CheckpointFile(path)
    prefix = VAE if any(key.startswith(VAE) for key in file.shapes) else ""
    keys = [key for key in file.shapes if key.removeprefix(prefix).startswith(_PARTS)]
    if any(key.startswith(_DIFFUSERS) for key in keys):
        raise ValueError(
            f"The VAE '{shown_name(path)}' is in the layout of diffusers. Choose the same VAE as a "
            "single file for ComfyUI, such as vae-ft-mse-840000-ema-pruned.safetensors."
        )
    if not any(key.removeprefix(prefix).startswith("decoder.") for key in keys):
        raise ValueError(
            f"'{shown_name(path)}' contains no VAE. Choose a VAE for the same kind of model, such "
            "as vae-ft-mse-840000-ema-pruned.safetensors for Stable Diffusion 1, or a complete "
            "checkpoint."
        )
    file.rename({VAE + key.removeprefix(prefix): key for key in keys})
    return file
