"""Weight names: from diffusers' and transformers' modules to the single-file layout that ComfyUI
reads.

Each function maps all weight names of one module to their names in the file, one to one. The number
of levels and layers, and where attention is, are read from the names themselves."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from .layouts import UNET, VAE

Table = Mapping[str, str]
"""Beginnings of names: the module's, and what the file has instead."""

_UNET_BLOCKS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
"""All U-Net blocks except those of the levels."""
_UNET_LAYERS = {
    "resnets": {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
}
"""The layers inside a block, by kind of block. Those of attention blocks have the same names."""
_VAE_BLOCKS = {
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.1": "mid.block_2",
}
"""All blocks of the VAE's encoder or decoder except those of the levels."""
_VAE_LAYERS = {
    "resnets": {"conv_shortcut": "nin_shortcut"},
    "attentions": {
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
    },
}
"""The layers inside a block, by kind of block."""


def unet_file_names(names: Collection[str]) -> dict[str, str]:
    """The file's names for the weights of a UNet2DConditionModel."""
    blocks = {**_UNET_BLOCKS, **_unet_level_blocks(names)}
    return {name: UNET + _file_name(name, blocks, _UNET_LAYERS) for name in names}


def vae_file_names(names: Collection[str]) -> dict[str, str]:
    """The file's names for the weights of an AutoencoderKL."""
    blocks = _vae_level_blocks(names)
    for half in ("encoder", "decoder"):
        blocks |= {f"{half}.{ours}": f"{half}.{theirs}" for ours, theirs in _VAE_BLOCKS.items()}
    return {name: VAE + _file_name(name, blocks, _VAE_LAYERS) for name in names}


def text_encoder_file_names(names: Collection[str], prefix: str) -> dict[str, str]:
    """The file's names, which begin with `prefix`, for the weights of a CLIPTextModel. The module's
    names begin with `text_model.` up to transformers 4, and without it since transformers 5."""
    return {name: prefix + name.removeprefix("text_model.") for name in names}


def shapes_match(file_shape: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a file's tensor fits a module's. The VAE's attention consists of 1x1 convolutions in
    the file and of linear layers in diffusers."""
    return file_shape == shape or (len(shape) == 2 and file_shape == (*shape, 1, 1))


def in_file_layout(tensors: Mapping[str, Tensor], names: Table) -> dict[str, Tensor]:
    """A module's tensors under their names and in their shapes in a new file."""
    return {names[name]: _in_file_shape(names[name], value) for name, value in tensors.items()}


def _in_file_shape(file_name: str, tensor: Tensor) -> Tensor:
    is_convolution = file_name.startswith(VAE) and ".attn_" in file_name and tensor.ndim == 2
    return tensor[:, :, None, None] if is_convolution else tensor


def _unet_level_blocks(names: Collection[str]) -> dict[str, str]:
    """The blocks of a U-Net's levels. The file numbers them across all levels. A downsampling is a
    separate block of `input_blocks`; an upsampling is the last part of a block of `output_blocks`.
    """
    blocks: dict[str, str] = {}
    index = 1  # input_blocks.0 is conv_in
    for level, num_resnets in enumerate(_resnets_per_level(names, "down_blocks")):
        for number in range(num_resnets):
            blocks[f"down_blocks.{level}.resnets.{number}"] = f"input_blocks.{index}.0"
            blocks[f"down_blocks.{level}.attentions.{number}"] = f"input_blocks.{index}.1"
            index += 1
        blocks[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{index}.0.op"
        index += 1
    index = 0
    for level, num_resnets in enumerate(_resnets_per_level(names, "up_blocks")):
        for number in range(num_resnets):
            blocks[f"up_blocks.{level}.resnets.{number}"] = f"output_blocks.{index}.0"
            blocks[f"up_blocks.{level}.attentions.{number}"] = f"output_blocks.{index}.1"
            index += 1
        has_attention = any(name.startswith(f"up_blocks.{level}.attentions.") for name in names)
        part = 2 if has_attention else 1
        blocks[f"up_blocks.{level}.upsamplers.0"] = f"output_blocks.{index - 1}.{part}"
    return blocks


def _vae_level_blocks(names: Collection[str]) -> dict[str, str]:
    """The blocks of a VAE's levels. In the file, level 0 is the pixels' resolution in both halves;
    the decoder reaches it last."""
    blocks: dict[str, str] = {}
    for level, num_resnets in enumerate(_resnets_per_level(names, "encoder.down_blocks")):
        ours, theirs = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
        blocks |= {f"{ours}.resnets.{n}": f"{theirs}.block.{n}" for n in range(num_resnets)}
        blocks[f"{ours}.downsamplers.0"] = f"{theirs}.downsample"
    resnets = _resnets_per_level(names, "decoder.up_blocks")
    for level, num_resnets in enumerate(resnets):
        ours, theirs = f"decoder.up_blocks.{level}", f"decoder.up.{len(resnets) - 1 - level}"
        blocks |= {f"{ours}.resnets.{n}": f"{theirs}.block.{n}" for n in range(num_resnets)}
        blocks[f"{ours}.upsamplers.0"] = f"{theirs}.upsample"
    return blocks


def _resnets_per_level(names: Collection[str], levels: str) -> list[int]:
    """The number of residual blocks in each of `levels`, in the module's order."""
    pattern = re.compile(rf"{re.escape(levels)}\.(\d+)\.resnets\.\d+\.norm1\.weight")
    found = [int(match[1]) for match in map(pattern.fullmatch, names) if match]
    return [found.count(level) for level in range(max(found, default=-1) + 1)]


def _file_name(name: str, blocks: Table, layers: Mapping[str, Table]) -> str:
    """The file's name of a weight: swaps the block's name, then the layer's inside that block."""
    block = next((block for block in blocks if name.startswith(f"{block}.")), None)
    if block is None:
        return name
    kind = next((kind for kind in layers if f"{kind}." in block), None)
    rest = name.removeprefix(f"{block}.")
    return f"{blocks[block]}.{_swap_layer(rest, layers[kind]) if kind else rest}"


def _swap_layer(rest: str, layers: Table) -> str:
    layer = next((layer for layer in layers if rest.startswith(f"{layer}.")), None)
    return rest if layer is None else layers[layer] + rest.removeprefix(layer)
