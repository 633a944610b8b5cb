"""The adapters of a LoRA, as far as the memory of training depends on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from ..families.lora_file import LoraFile
from ..families.lora_layers import UNET_PART, LoraLayer
from ..families.shapes import ModelShape, NetworkShape
from ..methods.adapters import Adapter, attach
from ..methods.base import Method
from ..methods.lora import LoRA


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """The adapter of one layer."""

    path: str
    """The layer's path inside its network."""
    rank: int
    dora: bool


AdapterShapes = tuple[AdapterShape, ...]
"""Those of a network."""


def adapters_of(method: Method, model: ModelShape) -> Mapping[str, AdapterShapes]:
    """The adapters that a method trains, by part of the model. Raises ValueError or
    FileNotFoundError if the LoRA to train further cannot be used."""
    if not isinstance(method, LoRA):
        return {}
    return _adapters_of(method, model.unet, model.text_encoders)


def attach_all(network: nn.Module, shapes: AdapterShapes) -> list[Adapter]:
    """Let a network have new adapters."""
    adapters = []
    for each in shapes:
        layer = network.get_submodule(each.path)
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        adapters.append(Adapter(layer, each.rank, 1.0, dora=each.dora))
        attach(layer, adapters[-1])
    return adapters


def parameters(network: NetworkShape, shapes: AdapterShapes) -> list[Tensor]:
    """The trained tensors of a network's adapters, on torch's meta device."""
    return [p for adapter in _on_meta(network, shapes) for p in adapter.parameters()]


def num_bytes(network: NetworkShape, shapes: AdapterShapes) -> int:
    """Bytes of a network's adapters, with what they keep of the weights that they change."""
    adapters = _on_meta(network, shapes)
    return sum(t.nbytes for each in adapters for t in (*each.parameters(), *each.buffers()))


@cache
def _adapters_of(
    method: LoRA, unet: NetworkShape, text_encoders: tuple[NetworkShape, ...]
) -> Mapping[str, AdapterShapes]:
    file = LoraFile(method.start) if method.start else None
    found: dict[str, AdapterShapes] = {}
    layers = ModelShape("", unet, unet, text_encoders).lora_layers()
    for layer, rank, dora in _trained(method, layers, file):
        shape = AdapterShape(layer.path, rank, dora)
        found[layer.part] = (*found.get(layer.part, ()), shape)
    return found


def _trained(
    method: LoRA, layers: list[LoraLayer], file: LoraFile | None
) -> Iterator[tuple[LoraLayer, int, bool]]:
    """The layers that are trained, with their ranks, and whether they are DoRA."""
    parts = (UNET_PART, *method.trained_text_encoders)
    for layer in layers:
        rank, dora = file.form_of(layer) if file else (method.rank_of(layer), method.dora)
        if rank and layer.part in parts:
            yield layer, rank, dora


@cache
def _on_meta(network: NetworkShape, shapes: AdapterShapes) -> list[Adapter]:
    with torch.device("meta"):
        return attach_all(network.build(), shapes)
