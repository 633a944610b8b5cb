"""The architecture of a checkpoint's networks, read from the shapes of its tensors: widths, levels,
layers, and where attention is. Everything else about them is in `constants.py`.

A level is the part of a network that works at one resolution. Depth is the number of transformer
layers in one attention block."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from .files import CheckpointFile

UNET = "model.diffusion_model."
VAE = "first_stage_model."
ADDED = f"{UNET}label_emb.0.0.weight"
"""Only in U-Nets that are also given pooled text and sizes, or an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetLayout:
    """Tuples have one entry per level. The first level works at the latents' resolution."""

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    """Channels of each level."""
    num_layers: tuple[int, ...]
    """Residual blocks on the way down; there is one more on the way up."""
    down_depths: tuple[int, ...]
    """Depth of the attention blocks on the way down. 0: no attention."""
    up_depths: tuple[int, ...]
    """Depth of the attention blocks on the way up. 0: no attention."""
    middle_depth: int | None
    """Depth of the middle's attention block. 0: no attention. None: no middle block at all."""
    context_width: int
    """Width of the text encoder's output."""
    has_linear_projections: bool
    """Whether attention blocks begin with linear layers, as in Stable Diffusion 2 and later, rather
    than 1x1 convolutions."""
    added_width: int
    """Width of pooled text and size conditions together. 0: the U-Net has no such inputs."""

    @classmethod
    def read(cls, source: CheckpointFile) -> UNetLayout:
        """Raises ValueError naming the weight if one that decides the layout is missing."""
        keys = source.shapes.keys()
        levels = _input_levels(source)
        num_layers = tuple(len(level) for level in levels)
        down_depths = tuple(_depth(keys, f"{level[0]}.1.") for level in levels)
        # The output blocks begin with the last level. Each level has one more than it has
        # input blocks.
        starts = [sum(n + 1 for n in num_layers[i + 1 :]) for i in range(len(levels))]
        up_depths = tuple(_depth(keys, f"{UNET}output_blocks.{start}.1.") for start in starts)
        middle = _depth(keys, f"{UNET}middle_block.1.")
        has_middle = count(keys, f"{UNET}middle_block.") > 0
        return cls(
            in_channels=source.shape(f"{UNET}input_blocks.0.0.weight", 4)[1],
            out_channels=source.shape(f"{UNET}out.2.weight", 4)[0],
            widths=tuple(
                source.shape(f"{level[-1]}.0.out_layers.3.weight", 4)[0] for level in levels
            ),
            num_layers=num_layers,
            down_depths=down_depths,
            up_depths=up_depths,
            middle_depth=middle if has_middle else None,
            context_width=_context_width(source),
            has_linear_projections=has_linear_projections(source.shapes),
            added_width=_added_width(source),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeLayout:
    latent_channels: int
    widths: tuple[int, ...]
    """Channels of each level. The first level works at the pixels' resolution."""
    num_layers: int
    """Residual blocks in each level of the encoder; the decoder has one more."""
    has_attention: bool
    """Whether the middle of encoder and decoder has attention."""

    @classmethod
    def read(cls, source: CheckpointFile) -> VaeLayout:
        """Raises ValueError naming the weight if one that decides the layout is missing."""
        keys, down = source.shapes.keys(), f"{VAE}encoder.down."
        widths = [
            source.shape(f"{down}{level}.block.0.conv1.weight", 4)[0]
            for level in range(max(count(keys, down), 1))
        ]
        return cls(
            latent_channels=source.shape(f"{VAE}post_quant_conv.weight", 4)[1],
            widths=tuple(widths),
            num_layers=count(keys, f"{down}0.block."),
            has_attention=any(key.startswith(f"{VAE}encoder.mid.attn_1.") for key in keys),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLayout:
    vocabulary: int
    """Number of tokens in the vocabulary."""
    positions: int
    """Maximum number of tokens in a text, including start and end."""
    width: int
    inner_width: int
    """Width of the feed-forward layers."""
    num_layers: int
    projection_width: int
    """Width of the pooled output. 0: there is none."""

    @classmethod
    def read(cls, source: CheckpointFile, prefix: str) -> TextLayout:
        """The layout of a text encoder in transformers' layout whose weight names begin with
        `prefix`. Raises ValueError naming the weight if one that decides the layout is missing."""
        vocabulary, width = source.shape(f"{prefix}embeddings.token_embedding.weight", 2)
        layers = f"{prefix}encoder.layers."
        return cls(
            vocabulary=vocabulary,
            positions=source.shape(f"{prefix}embeddings.position_embedding.weight", 2)[0],
            width=width,
            inner_width=source.shape(f"{layers}0.mlp.fc1.weight", 2)[0],
            num_layers=count(source.shapes, layers),
            projection_width=0,
        )

    @classmethod
    def read_open_clip(cls, source: CheckpointFile, prefix: str) -> TextLayout:
        """The same in OpenCLIP's layout."""
        vocabulary, width = source.shape(f"{prefix}token_embedding.weight", 2)
        layers, projection = f"{prefix}transformer.resblocks.", f"{prefix}text_projection"
        return cls(
            vocabulary=vocabulary,
            positions=source.shape(f"{prefix}positional_embedding", 2)[0],
            width=width,
            inner_width=source.shape(f"{layers}0.mlp.c_fc.weight", 2)[0],
            num_layers=count(source.shapes, layers),
            projection_width=source.shape(projection, 2)[1] if projection in source.shapes else 0,
        )


def _input_levels(source: CheckpointFile) -> list[list[str]]:
    """The name prefixes of each level's input blocks, without the downsampling between levels."""
    blocks = f"{UNET}input_blocks."
    levels: list[list[str]] = [[]]
    end = max(count(source.shapes, blocks), 2)
    for index in range(1, end):
        if f"{blocks}{index}.0.op.weight" in source.shapes and levels[-1]:
            levels.append([])
        else:
            levels[-1].append(f"{blocks}{index}")
    if not levels[-1]:
        source.require(f"{blocks}{end}.0.in_layers.0.weight")
    return levels


def _depth(keys: Collection[str], attention: str) -> int:
    return count(keys, f"{attention}transformer_blocks.")


def _context_width(source: CheckpointFile) -> int:
    ending = ".attn2.to_k.weight"
    names = (key for key in source.shapes if key.startswith(UNET) and key.endswith(ending))
    first = next(names, f"{UNET}middle_block.1.transformer_blocks.0{ending}")
    return source.shape(first, 2)[1]


def _added_width(source: CheckpointFile) -> int:
    return source.shape(ADDED, 2)[1] if ADDED in source.shapes else 0


def has_linear_projections(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """See `UNetLayout.has_linear_projections`."""
    return any(
        len(shape) == 2
        for key, shape in shapes.items()
        if key.startswith(UNET) and key.endswith(".proj_in.weight")
    )


def count(keys: Collection[str], prefix: str) -> int:
    """How many different numbers follow `prefix` in the keys. They should be 0, 1, 2 and so on. If
    there is a gap, it counts as one more, so that loading fails with the name of a missing weight
    instead of ignoring the rest."""
    found = {key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)}
    numbers = {text for text in found if text.isascii() and text.isdecimal()}
    has_gap = any(str(number) not in numbers for number in range(len(numbers)))
    return len(numbers) + has_gap
