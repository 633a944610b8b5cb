"""The shapes of a model's networks, without weights: enough to count what a run needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..settings.config import ModelOptions
from . import key_maps
from .base import parts_by_name
from .clip_skip import choose_clip_skip, files_of
from .files import CheckpointFile
from .key_maps import Places
from .lora_layers import UNET_PART, LoraLayer, lora_layers
from .networks import Network, build_text_encoder
from .vae_file import open_vae

_OPTIONS_OF_CLIP = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act",
)  # fmt: skip
TEXT = "text_encoder"
_PROJECTION, _NORM = "projection_dim", "has_norm"
"""Options of a text encoder that are not those of CLIPTextConfig: the width of the pooled output,
only if there is one, and whether the final layer norm is used."""
Options = tuple[tuple[str, Any], ...]
"""Arguments of a network's class, sorted by name and hashable."""


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """One network. Equal shapes need equal memory."""

    kind: str
    """unet, vae or text_encoder."""
    options: Options

    @staticmethod
    def of(kind: str, options: Mapping[str, Any]) -> NetworkShape:
        """From the arguments of the network's class in diffusers or transformers."""
        frozen = {name: _frozen(value) for name, value in options.items()}
        return NetworkShape(kind, tuple(sorted(frozen.items())))

    @staticmethod
    def of_module(kind: str, module: Any) -> NetworkShape:
        """The shape of an existing network of diffusers or transformers."""
        if kind == TEXT:
            options = {name: getattr(module.config, name) for name in _OPTIONS_OF_CLIP}
            if hasattr(module, "text_projection"):
                options[_PROJECTION] = module.config.projection_dim
            layers = getattr(module, "text_model", module)
            options[_NORM] = isinstance(layers.final_layer_norm, nn.LayerNorm)
        else:
            options = {name: v for name, v in module.config.items() if not name.startswith("_")}
        return NetworkShape.of(kind, options)

    def build(self) -> Any:
        """A new network, on torch's current default device."""
        # Imported here: ComfyUI's start-up should not pay for it.
        from diffusers import AutoencoderKL, UNet2DConditionModel

        options = dict(self.options)
        if self.kind == TEXT:
            projection, has_norm = options.pop(_PROJECTION, None), options.pop(_NORM, True)
            return build_text_encoder(options, projection, has_norm=has_norm)
        return (UNet2DConditionModel if self.kind == "unet" else AutoencoderKL)(**options)

    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The network's parameters, on torch's meta device."""
        return _parameters(self)

    def embeddings(self) -> tuple[Tensor, ...]:
        """Those of `parameters` that are tables of embeddings."""
        return _embeddings(self)

    def option(self, name: str) -> Any:
        """The value of an option; the class's own default if the shape does not name it."""
        return getattr(_on_meta(self).config, name)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model's networks, and the size that it draws."""

    name: str
    unet: NetworkShape
    vae: NetworkShape
    text_encoders: tuple[NetworkShape, ...]
    resolution: int = 512
    """Width and height that the model was trained at, in pixels."""

    @property
    def latent_factor(self) -> int:
        """Pixels per latent along each side."""
        return int(2 ** (len(self.vae.option("block_out_channels")) - 1))

    def lora_layers(self) -> list[LoraLayer]:
        """The layers that a LoRA can change, on torch's meta device. What their names are in LoRA
        files is known, but not where a checkpoint has a text encoder's weights."""
        networks = {
            part: Network(shape.build, _unet_places if part == UNET_PART else _text_places)
            for part, shape in parts_by_name(self.unet, self.text_encoders).items()
        }
        return list(lora_layers(networks, has_checkpoint_names=False))


def read_shape(path: Path, options: ModelOptions, embedding: Path | None = None) -> ModelShape:
    """The shape of the model in a checkpoint file. Reads no weights. Raises ValueError or
    FileNotFoundError if the file cannot be used."""
    from . import family_of

    source = CheckpointFile(path)
    family = family_of(source)
    if options.vae:
        source.vae = open_vae(options.vae)
    files = files_of(path, embedding, options.loras)
    clip_skip = choose_clip_skip(options.clip_skip, files, family.usual_clip_skip)
    constants = family.read_constants(source, options.prediction_type)
    networks = family.plan_networks(source, constants, clip_skip)
    unet, vae, *text_encoders = (
        NetworkShape.of_module(TEXT if part.startswith(TEXT) else part, each.module)
        for part, each in networks.items()
    )
    return ModelShape(path.name, unet, vae, tuple(text_encoders), constants.resolution)


def _unet_places(names: list[str]) -> Places:
    return key_maps.unet_places(names)


def _text_places(names: list[str]) -> Places:
    return key_maps.clip_places(names, prefix="")


@cache
def _on_meta(shape: NetworkShape) -> Any:
    with torch.device("meta"):
        return shape.build()


@cache
def _parameters(shape: NetworkShape) -> tuple[nn.Parameter, ...]:
    return tuple(_on_meta(shape).parameters())


@cache
def _embeddings(shape: NetworkShape) -> tuple[Tensor, ...]:
    modules = _on_meta(shape).modules()
    return tuple(each.weight for each in modules if isinstance(each, nn.Embedding))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _vae() -> NetworkShape:
    widths = (128, 256, 512, 512)
    return NetworkShape.of(
        "vae",
        {
            "block_out_channels": widths,
            "down_block_types": ("DownEncoderBlock2D",) * len(widths),
            "up_block_types": ("UpDecoderBlock2D",) * len(widths),
            "layers_per_block": 2,
            "latent_channels": 4,
        },
    )


def _clip(
    width: int, num_layers: int, num_heads: int, activation: str, **others: Any
) -> NetworkShape:
    return NetworkShape.of(
        TEXT,
        {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "hidden_act": activation,
            **others,
        },
    )


SD15 = ModelShape(
    "Stable Diffusion 1.5",
    NetworkShape.of("unet", {"cross_attention_dim": 768, "attention_head_dim": 8}),
    _vae(),
    (_clip(768, 12, 12, "quick_gelu"),),
)
SDXL = ModelShape(
    "Stable Diffusion XL",
    NetworkShape.of(
        "unet",
        {
            "cross_attention_dim": 2048,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
    _vae(),
    (
        _clip(768, 11, 12, "quick_gelu", **{_NORM: False}),
        _clip(1280, 32, 20, "gelu", **{_PROJECTION: 1280}),
    ),
    resolution=1024,
)
