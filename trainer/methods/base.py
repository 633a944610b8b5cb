"""What is trained: a Method holds frozen options; the Trainable that it attaches to a model holds
the live state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from ..checkpoint import Original
from ..data.examples import Example
from ..families.base import ModelFamily
from ..settings.config import OutputConfig, TrainingConfig
from ..weights import FileTensor


@dataclass(frozen=True, slots=True)
class Part:
    """Parameters that share a learning rate and are reported together."""

    name: str
    """The model family's name for it, such as "unet"."""
    parameters: list[nn.Parameter]
    learning_rate: float
    stop_step: int | None = None
    """The step after which this part is frozen; None trains it to the end."""
    decays: bool = True
    """Whether the optimizer applies weight decay."""
    directional: bool = False
    """Whether the vectors keep their lengths, so that only their directions are trained. If one
    part of a run is, all are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """A file that a run writes: the original file's tensors, with those of `parts` replaced."""

    kind: Literal["checkpoint", "embedding", "lora"]
    original: Original
    parts: list[Part]
    output: OutputConfig
    """Folder, name and number format of the file."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Metadata of this file only, added to the run's."""


class InitialTensors:
    """A copy of new weights from before training, as the `Original` of their file."""

    metadata: Mapping[str, str] = {}

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        dtypes: Mapping[str, torch.dtype] | None = None,
        exact: Collection[str] = (),
    ) -> None:
        """`dtypes` are those of the file, if they differ from the weights'; `exact` as in
        `Original`."""
        self._tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in tensors.items()} | dict(dtypes or {})
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.exact = exact

    def tensor(self, key: str) -> Tensor:
        return self._tensors[key]


class Trainable(ABC):
    """The parts of one model that are trained, and the files that they are written to."""

    parts: list[Part]
    files: list[OutputFile]
    trains_text_encoder: bool
    """Whether text encodings change during training, so that captions must be encoded at each
    step."""

    @abstractmethod
    def part_tensors(self, part: Part) -> Mapping[str, FileTensor]:
        """The current tensors of one part, by their names in the file."""

    def file_tensors(self, file: OutputFile) -> dict[str, FileTensor]:
        """The current trained tensors of one of `files`, by their names in it."""
        tensors: dict[str, FileTensor] = {}
        for part in file.parts:
            tensors.update(self.part_tensors(part))
        return tensors

    def initial_values(self, part: Part) -> Sequence[Tensor | None]:
        """The values of a part's parameters before training, in their order, in main memory and in
        any number format; None where any value means the same. Call it before the first step, and
        do not change them in place."""
        return [parameter.detach().cpu().clone() for parameter in part.parameters]

    def after_step(self) -> None:  # noqa: B027 (most methods need nothing here)
        """Called after each optimizer step."""


class Method(Protocol):
    """The options of a training method, as a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def trained_parts(self) -> frozenset[str]:
        """The names of the model's parts whose weights are trained, such as "unet"."""
        ...

    @property
    def encodes_captions_at_each_step(self) -> bool:
        """Whether text encodings change during training."""
        ...

    @property
    def trains_vectors(self) -> bool:
        """Whether vectors of words are trained, which go through the text encoders."""
        ...

    def caption(self, photos: Sequence[Example], prompt: str) -> list[Example]:
        """The photos with the captions to train on. Photos without a caption of their own arrive
        with `prompt` as their caption. Raises ValueError for captions that the method cannot use.
        """
        ...

    def check(self, config: TrainingConfig) -> None:
        """Raises ValueError, before anything is loaded, for settings of the run that the method
        cannot be combined with."""
        ...

    def attach(
        self, model: ModelFamily, config: TrainingConfig, photos: Sequence[Example]
    ) -> Trainable:
        """Make the model trainable. Parts without a learning rate in the options use the run's.
        Raises ValueError for options that do not fit the model or the photos."""
        ...


def refuse_sharded(config: TrainingConfig, trained: str) -> None:
    """Raise ValueError if weights are to be split that do not exist in a file of the model.
    `trained`: what is trained instead."""
    if config.sharded:
        raise ValueError(
            "sharded is on, which splits the model's trained weights among processes, but "
            f"{trained} is trained. Switch sharded off."
        )


def thaw(module: nn.Module) -> list[nn.Parameter]:
    """Make the module's parameters trainable, and return them."""
    return list(module.requires_grad_(True).parameters())
