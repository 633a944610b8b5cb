"""The layers of a model that a LoRA can change, and their names in LoRA files.

Files are written with kohya's names, which ComfyUI (`comfy/lora.py`) and most other programs read:
those of diffusers' modules for Stable Diffusion 1 and 2, and those of the checkpoint for XL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .key_maps import Place
from .layouts import UNET
from .networks import Network

UNET_PART = "unet"
TEXT_LAYERS = "encoder.layers."
"""Only these layers of text encoders have names in LoRA files."""
IN_TRANSFORMER = (".attentions.", TEXT_LAYERS)
"""In the paths of layers that belong to a transformer."""


@dataclass(frozen=True, slots=True, eq=False)
class LoraLayer:
    """A linear layer or a convolution."""

    part: str
    """The part of the model that it belongs to, such as "unet"."""
    path: str
    """The module's path inside the part, such as "mid_block.attentions.0.proj_in"."""
    module: Any
    place: Place
    """Where a checkpoint has its weight."""
    names: tuple[str, ...]
    """In LoRA files. The first one is written; all are read."""

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of its weight: [out, in], or [out, in, height, width] of a convolution."""
        return tuple(self.module.weight.shape)

    @property
    def is_in_transformer(self) -> bool:
        """Whether it is a layer of attention, or of the feed-forward network beside one, rather
        than of a residual block or of what is around the blocks."""
        return any(part in f".{self.path}" for part in IN_TRANSFORMER)


def lora_layers(
    networks: Mapping[str, Network], *, has_checkpoint_names: bool
) -> Iterator[LoraLayer]:
    """The layers of a model's trainable networks, in the networks' order. `has_checkpoint_names`:
    U-Net layers are written with the checkpoint's names rather than diffusers'."""
    text_encoders = [part for part in networks if part.startswith("text_encoder")]
    for part in (UNET_PART, *text_encoders):
        network = networks[part]
        for path, module in network.module.named_modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d)):
                continue
            place = network.places[f"{path}.weight"]
            if part == UNET_PART:
                names = _unet_names(path, place, has_checkpoint_names=has_checkpoint_names)
            elif TEXT_LAYERS in path:
                names = _text_names(path, part, len(text_encoders))
            else:
                continue
            yield LoraLayer(part, path, module, place, tuple(names))


def _unet_names(path: str, place: Place, *, has_checkpoint_names: bool) -> list[str]:
    in_checkpoint = place.key.removeprefix(UNET).removesuffix(".weight")
    kohya = [f"lora_unet_{_flat(name)}" for name in (path, in_checkpoint)]
    return [*kohya[:: -1 if has_checkpoint_names else 1], f"unet.{path}"]


def _text_names(path: str, part: str, num_text_encoders: int) -> list[str]:
    path = f"text_model.{path.removeprefix('text_model.')}"
    number = int(part.removeprefix("text_encoder").removeprefix("_") or 1)
    prefixes = [f"lora_te{number}_"] if num_text_encoders > 1 else ["lora_te_", "lora_te1_"]
    return [*(prefix + _flat(path) for prefix in prefixes), f"{part}.{path}"]


def _flat(name: str) -> str:
    return name.replace(".", "_")
