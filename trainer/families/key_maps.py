"""Where the single-file layout that ComfyUI reads has the weights of diffusers' and transformers'
modules.

Each function returns the places of all weights of one module, by name. The number of levels and
layers, and where attention is, are read from the names themselves."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .layouts import UNET, VAE

Table = Mapping[str, str]
"""Beginnings of names: the module's, and what the file has instead."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file has one weight of a module."""

    key: str
    """The tensor's name in the file."""
    third: int | None = None
    """0, 1 or 2: the weight is that third of the tensor's rows, where the weights of query, key and
    value are stacked. None: it is the whole tensor."""
    is_transposed: bool = False

    def file_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The shapes that the tensor in the file may have for a module's weight of this shape."""
        if self.is_transposed:
            return [shape[::-1]]
        if self.third is not None:
            return [(3 * shape[0], *shape[1:])]
        # The VAE's attention is 1x1 convolutions in the file, and linear layers in diffusers.
        return [shape, (*shape, 1, 1)] if len(shape) == 2 else [shape]

    def read(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The module's weight of this shape, from the tensor of the file. A view of it."""
        if self.third is not None:
            tensor = tensor.chunk(3)[self.third]
        return tensor.t() if self.is_transposed else tensor.view(shape)


Places = Mapping[str, Place]
"""The places of all weights of a module, by name."""

_UNET_BLOCKS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
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
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
"""All of OpenCLIP's weights except those of the layers and the projection."""
_OPEN_CLIP_LAYERS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
"""The layers inside one of OpenCLIP's layers, except query, key and value."""


def unet_places(names: Collection[str]) -> Places:
    """Of a UNet2DConditionModel."""
    blocks = {**_UNET_BLOCKS, **_unet_level_blocks(names)}
    return {name: Place(UNET + _file_name(name, blocks, _UNET_LAYERS)) for name in names}


def vae_places(names: Collection[str]) -> Places:
    """Of an AutoencoderKL."""
    blocks = _vae_level_blocks(names)
    for half in ("encoder", "decoder"):
        blocks |= {f"{half}.{ours}": f"{half}.{theirs}" for ours, theirs in _VAE_BLOCKS.items()}
    return {name: Place(VAE + _file_name(name, blocks, _VAE_LAYERS)) for name in names}


def clip_places(names: Collection[str], prefix: str) -> Places:
    """Of a CLIPTextModel, in transformers' layout, whose names in the file begin with `prefix`. The
    module's names begin with `text_model.` up to transformers 4, and without it since then."""
    return {name: Place(prefix + name.removeprefix("text_model.")) for name in names}


def open_clip_places(names: Collection[str], prefix: str) -> Places:
    """Of a CLIPTextModel or CLIPTextModelWithProjection, in OpenCLIP's layout, whose names in the
    file begin with `prefix`."""
    return {name: _open_clip_place(name.removeprefix("text_model."), prefix) for name in names}


def _open_clip_place(name: str, prefix: str) -> Place:
    if name == "text_projection.weight":
        return Place(f"{prefix}text_projection", is_transposed=True)
    if name in _OPEN_CLIP:
        return Place(prefix + _OPEN_CLIP[name])
    layer, _, rest = name.removeprefix("encoder.layers.").partition(".")
    block = f"{prefix}transformer.resblocks.{layer}."
    if stacked := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", rest):
        return Place(f"{block}attn.in_proj_{stacked[2]}", third="qkv".index(stacked[1]))
    return Place(block + _swap_layer(rest, _OPEN_CLIP_LAYERS))


def in_file_layout(tensors: Mapping[str, Tensor], places: Places) -> dict[str, Tensor]:
    """A module's tensors under their names and in their shapes in a new file."""
    found: dict[str, list[Tensor]] = {}
    # Thirds in their order in the file.
    for name, place in sorted(places.items(), key=lambda item: item[1].third or 0):
        found.setdefault(place.key, []).append(_in_file_shape(place, tensors[name]))
    return {key: parts[0] if len(parts) == 1 else torch.cat(parts) for key, parts in found.items()}


def _in_file_shape(place: Place, tensor: Tensor) -> Tensor:
    if place.is_transposed:
        return tensor.t()
    is_convolution = place.key.startswith(VAE) and ".attn_" in place.key and tensor.ndim == 2
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
