"""How a checkpoint's networks are built, read from the shapes of its tensors: widths, levels,
layers, where attention is. What shapes cannot tell is the family's to say.

A level works at one resolution; depth counts the transformer layers of one attention block."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .files import CheckpointFile

UNET = "model.diffusion_model."
VAE = "first_stage_model."


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetLayout:
    """All tuples go from the first level, at the latents' own resolution, to the last."""

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    """Channels of each level."""
    num_layers: tuple[int, ...]
    """Residual blocks of each level on the way down; there is one more on the way up."""
    down_depths: tuple[int, ...]
    """Of the attention after each residual block; 0 is none."""
    up_depths: tuple[int, ...]
    middle_depth: int | None
    """0 is a residual block alone, None no middle at all."""
    context_width: int
    """Of the text encoder's output."""

    @classmethod
    def read(cls, source: CheckpointFile) -> UNetLayout:
        """ValueError names a weight without which the layout cannot be told."""
        keys = source.shapes.keys()
        levels = _input_levels(source)
        num_layers = tuple(len(level) for level in levels)
        down_depths = tuple(_depth(keys, f"{level[0]}.1.") for level in levels)
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
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeLayout:
    """Tuples go from the level at the pixels' own resolution to the last."""

    latent_channels: int
    widths: tuple[int, ...]
    num_layers: int
    """Residual blocks of each level of the encoder; the decoder has one more."""
    has_attention: bool
    """In the middle."""

    @classmethod
    def read(cls, source: CheckpointFile) -> VaeLayout:
        """ValueError names a weight without which the layout cannot be told."""
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
    """Number of tokens."""
    positions: int
    """The longest text in tokens, start and end included."""
    width: int
    inner_width: int
    """Of the feed-forward layers."""
    num_layers: int

    @classmethod
    def read(cls, source: CheckpointFile, prefix: str) -> TextLayout:
        """Of a CLIP text encoder whose names begin with the prefix. ValueError names a weight
        without which the layout cannot be told."""
        vocabulary, width = source.shape(f"{prefix}embeddings.token_embedding.weight", 2)
        layers = f"{prefix}encoder.layers."
        return cls(
            vocabulary=vocabulary,
            positions=source.shape(f"{prefix}embeddings.position_embedding.weight", 2)[0],
            width=width,
            inner_width=source.shape(f"{layers}0.mlp.fc1.weight", 2)[0],
            num_layers=count(source.shapes, layers),
        )


def _input_levels(source: CheckpointFile) -> list[list[str]]:
    """The names' beginnings of each level's blocks, without the downsampling between levels."""
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


def count(keys: Collection[str], beginning: str) -> int:
    """How many numbers follow `beginning`, which should be 0, 1, 2 and so on; 0 if none does. A gap
    counts as one: the weight that is missing there is then missed by its name, not taken for the
    end."""
    found = {key[len(beginning) :].split(".")[0] for key in keys if key.startswith(beginning)}
    numbers = {text for text in found if text.isascii() and text.isdecimal()}
    has_gap = any(str(number) not in numbers for number in range(len(numbers)))
    return len(numbers) + has_gap
