"""LoRA files, and how they change the weights of a model.

Shapes: r rank, and a weight's [out, in] or [out, in, height, width]."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .files import LORA, CheckpointFile
from .kinds import describe
from .lora_layers import LoraLayer

logger = logging.getLogger(__name__)

ENDINGS = {
    ".lora_down.weight": "down",
    ".lora_A.weight": "down",
    ".lora.down.weight": "down",
    "_lora.down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_B.weight": "up",
    ".lora.up.weight": "up",
    "_lora.up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    ".dora_scale": "magnitude",
}
"""What the names of a layer's tensors end with, and what these tensors are: those of kohya's
programs, then of diffusers and peft."""
NOT_LORA = re.compile(r"\.(hada_w|lokr_w|oft_|diff|w_norm|b_norm|glora|a1\.|boft)")
"""In the names of tensors of other kinds, such as LoHa and LoKr."""
MAX_SHOWN = 3
"""Layers that a message names."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerChange:
    """What a LoRA does to one layer."""

    down: Tensor
    """[r, in], or [r, in, height, width] of a convolution."""
    up: Tensor
    """[out, r], or [out, r, 1, 1] of a convolution."""
    alpha: float | None = None
    """The change is multiplied by alpha / r; None: by 1."""
    mid: Tensor | None = None
    """[r, r, height, width], between both (LoCon with a Tucker decomposition); `down` and `up` are
    1x1 then."""
    magnitude: Tensor | None = None
    """DoRA (arXiv 2402.09353): the norms of the new weight for each input [1, in], or in the files
    of some programs for each output [out, 1]. With ones for height and width of a convolution."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def difference(self) -> Tensor:
        """What is added to the weight before DoRA's norms are applied, [out, in, ...] fp32."""
        down, up = self.down.float(), self.up.float().flatten(1)
        if self.mid is not None:
            down = torch.einsum("rshw,si->rihw", self.mid.float(), down.flatten(1))
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        return (scale * (up @ down.flatten(1))).view(len(up), *down.shape[1:])

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The changed weight. `weight` and the result are fp32, in the layer's shape. Matches
        ComfyUI (`comfy/weight_adapter/lora.py`)."""
        difference = self.difference().view(weight.shape)
        if self.magnitude is None:
            return weight + strength * difference
        magnitude, changed = self.magnitude.float(), weight + difference
        is_by_output = magnitude.shape[0] == weight.shape[0]
        # ComfyUI takes the norms by output from the weight before the change.
        norms = _norms(weight, 0) if is_by_output else _norms(changed, 1)
        norms = norms + torch.finfo(torch.float32).eps
        changed = changed * (magnitude.view(norms.shape) / norms)
        return weight + strength * (changed - weight)


def _norms(weight: Tensor, kept: int) -> Tensor:
    """The norms of a weight over all dimensions but one, which are 1 in the result."""
    others = tuple(dimension for dimension in range(weight.ndim) if dimension != kept)
    return torch.linalg.vector_norm(weight, dim=others, keepdim=True)


class LoraFile:
    """A LoRA file, opened: its layers are read one by one."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError if the file does not exist, or ValueError if it is no LoRA."""
        self._file = CheckpointFile(path, LORA)
        self._layers: dict[str, dict[str, str]] = {}
        """The names of tensors by layer and by what they are."""
        for key in self._file.shapes:
            ending = next((each for each in ENDINGS if key.endswith(each)), None)
            if ending:
                layer = self._layers.setdefault(key.removesuffix(ending), {})
                layer[ENDINGS[ending]] = key
        self._require_plain()

    @property
    def name(self) -> str:
        """What messages call the file."""
        return self._file.name

    def sha256(self) -> str:
        return self._file.sha256()

    def changes(self, layers: Iterable[LoraLayer], model: str) -> dict[LoraLayer, str]:
        """The layers of a model that the file changes, with their names in the file, for `change`.
        `model` is the model's kind, for messages. Warns of layers that the model does not have.
        Raises ValueError if it has none of them."""
        found: dict[LoraLayer, str] = {}
        for layer in layers:
            if name := self._name_of(layer):
                self._require_fit(layer, name, model)
                found[layer] = name
        unknown = sorted(self._layers.keys() - set(found.values()))
        if not found:
            raise ValueError(
                f"'{self.name}' changes no layer of {model}: it has layers such as "
                f"{', '.join(map(repr, unknown[:MAX_SHOWN]))}. Choose a LoRA for {model}."
            )
        if unknown:
            logger.warning(
                "'%s' also changes %d layers that %s does not have, such as '%s'. They have no "
                "effect.", self.name, len(unknown), model, unknown[0],
            )  # fmt: skip
        return found

    def form_of(self, layer: LoraLayer) -> tuple[int, bool]:
        """The rank of the change of a layer, 0 if there is none, and whether it is DoRA."""
        name = self._name_of(layer)
        if not name:
            return 0, False
        keys = self._layers[name]
        return self._file.shapes[keys["down"]][0], "magnitude" in keys

    def change(self, name: str) -> LayerChange:
        """What the file does to the layer with this name."""
        keys = self._layers[name]
        tensors = {kind: self._file.tensor(key) for kind, key in keys.items() if kind != "alpha"}
        alpha = self._file.tensor(keys["alpha"]).item() if "alpha" in keys else None
        return LayerChange(**tensors, alpha=alpha)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The file's own tensors of the layer with this name."""
        return {key: self._file.tensor(key) for key in self._layers[name].values()}

    def patch(
        self, source: CheckpointFile, layer: LoraLayer, name: str, strength: float = 1.0
    ) -> None:
        """Let a checkpoint file return the weight of a layer as this file changes it."""

        def patched(tensor: Tensor) -> Tensor:
            tensor = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            weight = layer.place.read(tensor, layer.shape)  # a view
            weight.copy_(self.change(name).apply(weight, strength))
            return tensor

        source.patch(layer.place.key, patched)

    def _name_of(self, layer: LoraLayer) -> str | None:
        """What the file calls a layer. None: it does not change the layer."""
        return next((name for name in layer.names if name in self._layers), None)

    def _require_plain(self) -> None:
        other = next((key for key in self._file.shapes if NOT_LORA.search(key)), None)
        if other:
            raise ValueError(
                f"'{self.name}' is not a plain LoRA: it holds '{other}', as LoHa, LoKr and similar "
                "files do. Load it with ComfyUI's Load LoRA and connect Model from Graph, or "
                "choose a LoRA."
            )
        incomplete = [name for name, keys in self._layers.items() if not {"down", "up"} <= {*keys}]
        if not self._layers or incomplete:
            lacking = f"lacks weights of '{incomplete[0]}'" if incomplete else (
                f"is {describe(self._file.shapes)}, not a LoRA"
            )  # fmt: skip
            raise ValueError(f"'{self.name}' {lacking}. Choose a complete LoRA file.")

    def _require_fit(self, layer: LoraLayer, name: str, model: str) -> None:
        shapes, keys = self._file.shapes, self._layers[name]
        down, up = shapes[keys["down"]], shapes[keys["up"]]
        if up[1] != down[0]:
            raise ValueError(
                f"The layer '{name}' of '{self.name}' has weights of the shapes {list(down)} and "
                f"{list(up)}, which do not fit each other. The file is damaged: download it again, "
                "or choose another."
            )
        middle = shapes[keys["mid"]][2:] if "mid" in keys else down[2:]
        has, needs = (up[0], down[1], *middle), layer.shape
        if (*has, 1, 1)[:4] != (*needs, 1, 1)[:4]:
            raise ValueError(
                f"The layer '{name}' of '{self.name}' is made for a weight of the shape "
                f"{list(has)}, but that of {model} has {list(needs)}. Choose a LoRA for {model}."
            )


def patch(
    source: CheckpointFile,
    layers: Iterable[LoraLayer],
    loras: Mapping[LoraFile, float],
    model: str,
) -> None:
    """Let a checkpoint file return its weights as LoRAs change them, at these strengths. `model` is
    the kind of model, for messages. Raises ValueError if a LoRA does not fit."""
    layers = list(layers)
    for lora, strength in loras.items():
        for layer, name in lora.changes(layers, model).items():
            lora.patch(source, layer, name, strength)
        used = f"{lora.sha256()} {strength:g}"
        source.overrides["loras"] = ", ".join(filter(None, [source.overrides.get("loras"), used]))
