"""A base model and a model that was trained from it: what differs between their files, weight by
weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..families import DEFAULT_OPTIONS, family_of, open_model
from ..families.base import ModelFamily
from ..families.clip_skip import LAST_LAYER
from ..families.constants import Constants
from ..families.lora_layers import LoraLayer
from ..families.networks import Network
from ..observer import Observer
from ..settings.config import ModelOptions

VAE_PART = "vae"
TOKEN_EMBEDDINGS, NORMS, VAE, OTHERS = (
    "token embeddings",
    "biases and norms",
    "VAE",
    "other weights",
)
"""Kinds of weights that a LoRA cannot hold."""


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint, and how it is read."""

    path: Path
    options: ModelOptions = DEFAULT_OPTIONS


class OpenModel:
    """A checkpoint file with its networks, without their weights."""

    def __init__(self, model: Model) -> None:
        self.source = open_model(model.path, model.options)
        self.family: type[ModelFamily] = family_of(self.source)
        self.constants: Constants = self.family.read_constants(
            self.source, model.options.prediction_type
        )
        self.networks: dict[str, Network] = self.family.plan_networks(
            self.source, self.constants, LAST_LAYER
        )
        for network in self.networks.values():
            network.require_tensors(self.source)

    @property
    def architecture(self) -> str:
        """The name in ModelSpec metadata."""
        of_v = self.family.architecture_of_v if self.constants.is_v_prediction else ""
        return of_v or self.family.architecture

    def shapes(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """Those of all weights, by part and name."""
        return {
            (part, name): tuple(tensor.shape)
            for part, network in self.networks.items()
            for name, tensor in network.module.state_dict().items()
        }

    def weight(self, part: str, name: str, shape: tuple[int, ...]) -> Tensor:
        """One weight in the file's number format, or in fp32 if it is patched."""
        place = self.networks[part].places[name]
        weight = place.read(self.source.tensor(place.key), shape)
        self.source.require_finite(place.key, weight.float())
        return weight


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What training changed of one weight."""

    layer: LoraLayer | None
    """The layer that it belongs to, if a LoRA can hold the change."""
    kind: str
    """If a LoRA cannot, the kind of weight, such as `NORMS`."""
    difference: Tensor
    """Trained minus base, in float64."""

    @property
    def squares(self) -> float:
        return float(self.difference.square().sum())


class ModelPair:
    """Both files, opened. Their weights are read one by one."""

    def __init__(self, base: Model, trained: Model) -> None:
        """Raises FileNotFoundError or ValueError if a file cannot be used, or if the trained model
        cannot come from the base model."""
        self.base, self.trained = OpenModel(base), OpenModel(trained)
        self._require_same_networks()
        layers = self.base.family.lora_layers_of(self.base.networks)
        self._layers = {(layer.part, f"{layer.path}.weight"): layer for layer in layers}

    def changes(self, device: torch.device, observer: Observer) -> Iterator[Change]:
        """All weights that differ, on the device. Raises ValueError if one is NaN or infinite."""
        shapes = self.base.shapes()
        for done, ((part, name), shape) in enumerate(shapes.items(), start=1):
            before = self.base.weight(part, name, shape)
            after = self.trained.weight(part, name, shape)
            if not _is_equal(before, after):
                layer = self._layers.get((part, name))
                difference = _in_double(after, device) - _in_double(before, device)
                yield Change(layer, _kind(part, name, len(shape)), difference)
            observer.on_progress("Extracting", done, len(shapes))

    def _require_same_networks(self) -> None:
        base, trained = self.base, self.trained
        advice = f"Choose the base model that '{trained.source.name}' was trained from."
        if base.family is not trained.family:
            raise ValueError(
                f"'{trained.source.name}' is {trained.family.name}, but '{base.source.name}' is "
                f"{base.family.name}. {advice}"
            )
        ours, theirs = base.shapes(), trained.shapes()
        different = [each for each in {**ours, **theirs} if ours.get(each) != theirs.get(each)]
        if different:
            shown = [
                list(found[different[0]]) if different[0] in found else "none"
                for found in (theirs, ours)
            ]
            raise ValueError(
                f"'{trained.source.name}' and '{base.source.name}' have different networks: the "
                f"shape of '{'.'.join(different[0])}' is {shown[0]} in the first and {shown[1]} in "
                f"the second. {advice}"
            )


def _is_equal(before: Tensor, after: Tensor) -> bool:
    """Whether they are equal, or differ only because one file has coarser numbers."""
    return any(
        torch.equal(one.to(other.dtype).float(), other.float())
        for one, other in ((before, after), (after, before))
    )


def _in_double(weight: Tensor, device: torch.device) -> Tensor:
    # In fp32 first: not every device converts fp8.
    return weight.float().to(device).double()


def _kind(part: str, name: str, num_dimensions: int) -> str:
    if part == VAE_PART:
        return VAE
    if "token_embedding" in name:
        return TOKEN_EMBEDDINGS
    return NORMS if num_dimensions == 1 else OTHERS
