"""Weight names: diffusers' and transformers' modules to the single-file layout that ComfyUI reads.

Each function takes a module's own names and gives {its name: name in the file}, one to one; how
many levels and layers there are, and where attention is, is read from the names themselves."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from itertools import accumulate

from torch import Tensor

from .layouts import UNET, VAE

_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ENDS = {
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.1": "mid.block_2",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}

_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)")


def unet_file_names(names: Collection[str]) -> dict[str, str]:
    """Of a UNet2DConditionModel's names. The file counts blocks through all levels: input_blocks
    hold what goes down, with each downsampling as a block of its own; output_blocks what goes up,
    with each upsampling inside the block before it."""
    down, up = _counts(names, "down"), _counts(names, "up")
    first_down = list(accumulate((num_resnets + 1 for num_resnets in down), initial=1))
    first_up = list(accumulate(up, initial=0))

    def block_name(direction: str, level: int, kind: str, index: int) -> str:
        if direction == "down":
            block = f"input_blocks.{first_down[level] + index}"
            if kind == "downsamplers":
                return f"input_blocks.{first_down[level + 1] - 1}.0.op"
        else:
            block = f"output_blocks.{first_up[level] + index}"
            if kind == "upsamplers":
                has_attention = any(n.startswith(f"up_blocks.{level}.attentions.") for n in names)
                return f"output_blocks.{first_up[level + 1] - 1}.{1 + has_attention}.conv"
        return f"{block}.{'0' if kind == 'resnets' else '1'}"

    def file_name(name: str) -> str:
        if match := _BLOCK.fullmatch(name):
            direction, level, kind, index, rest = match.groups()
            block = block_name(direction, int(level), kind, int(index))
            rest = rest.removeprefix("conv.") if kind.endswith("samplers") else rest
            return f"{UNET}{block}.{_swap(rest, _UNET_RESNET) if kind == 'resnets' else rest}"
        swapped = _swap(name, _UNET_ENDS)
        block, _, rest = swapped.partition(".")
        if block == "middle_block" and rest[0] in "02":
            return f"{UNET}{block}.{rest[0]}.{_swap(rest[2:], _UNET_RESNET)}"
        return f"{UNET}{swapped}"

    return {name: file_name(name) for name in names}


def vae_file_names(names: Collection[str]) -> dict[str, str]:
    """Of an AutoencoderKL's names. The file counts the decoder's levels as the encoder's: 0 is the
    one at the pixels' own resolution, which the decoder reaches last."""
    last_level = len(_counts(names, "up")) - 1

    def file_name(name: str) -> str:
        half, _, inner = name.partition(".")
        if match := _BLOCK.fullmatch(inner):
            direction, level, kind, index, rest = match.groups()
            block = f"{direction}.{level if direction == 'down' else last_level - int(level)}"
            if kind == "resnets":
                rest = _swap(rest, {"conv_shortcut": "nin_shortcut"})
                return f"{VAE}{half}.{block}.block.{index}.{rest}"
            return f"{VAE}{half}.{block}.{kind.removesuffix('rs')}.{rest}"
        swapped = _swap(inner, _VAE_ENDS)
        if swapped.startswith("mid.attn_1."):
            swapped = f"mid.attn_1.{_swap(swapped.removeprefix('mid.attn_1.'), _VAE_ATTENTION)}"
        return f"{VAE}{half}.{swapped}"

    return {name: file_name(name) for name in names}


def text_encoder_file_names(names: Collection[str], prefix: str) -> dict[str, str]:
    """Of a CLIPTextModel's names, which begin with `text_model.` up to transformers 4 and without
    it from 5 on; `prefix` is what the file's begin with."""
    return {name: prefix + name.removeprefix("text_model.") for name in names}


def same_but_for_1x1(file_shape: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a file's tensor fits a module's: the VAE's attention is made of 1x1 convolutions in
    the file and of linear layers in diffusers."""
    return file_shape == shape or (len(shape) == 2 and file_shape == (*shape, 1, 1))


def in_file_layout(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """A module's tensors under their names in a new file, and in the shape they have there."""
    return {names[name]: _in_file_shape(names[name], value) for name, value in tensors.items()}


def _in_file_shape(file_name: str, tensor: Tensor) -> Tensor:
    is_convolution = file_name.startswith(VAE) and ".attn_" in file_name and tensor.ndim == 2
    return tensor[:, :, None, None] if is_convolution else tensor


def _counts(names: Collection[str], direction: str) -> list[int]:
    """Residual blocks of each level, in the module's order."""
    found = re.compile(rf"(?:.*\.)?{direction}_blocks\.(\d+)\.resnets\.(\d+)\.norm1\.weight")
    matches = (match.groups() for match in map(found.fullmatch, names) if match)
    blocks = [int(level) for level, _ in matches]
    return [blocks.count(level) for level in range(max(blocks, default=-1) + 1)]


def _swap(name: str, table: Mapping[str, str]) -> str:
    """The name with its beginning exchanged as the table says, if it says anything."""
    for ours, theirs in table.items():
        if name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    return name
