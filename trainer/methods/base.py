"""What is trained: a Method holds frozen options, the Trainable it attaches is the live part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from ..checkpoint import Original
from ..data.examples import Example
from ..families.base import ModelFamily
from ..settings.config import OutputConfig, TrainingConfig


@dataclass(frozen=True, slots=True)
class Part:
    """Parameters that share a learning rate and are reported on together."""

    name: str
    """As the model's family calls it, such as "unet"."""
    parameters: list[nn.Parameter]
    learning_rate: float
    stop_step: int | None = None
    """The step after which it is left as it is; None trains it to the end."""
    decays: bool = True
    """Whether the optimizer's weight decay pulls at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """One of the files that a run writes: the original's tensors, those of `parts` exchanged."""

    kind: Literal["checkpoint", "embedding"]
    original: Original
    parts: list[Part]
    output: OutputConfig
    """Where it goes."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What this file says of itself beyond what the run says of itself."""


class Trainable(ABC):
    """What the optimizer may change of one model, and the files it goes into."""

    parts: list[Part]
    files: list[OutputFile]
    trains_text_encoder: bool
    """Whether captions must be encoded anew at each step."""

    @abstractmethod
    def part_tensors(self, part: Part) -> dict[str, Tensor]:
        """One part's trained tensors, under the names of its file."""

    def file_tensors(self, file: OutputFile) -> dict[str, Tensor]:
        """The trained tensors of one of `files`, under their names in it."""
        tensors: dict[str, Tensor] = {}
        for part in file.parts:
            tensors.update(self.part_tensors(part))
        return tensors

    def after_step(self) -> None:  # noqa: B027 (most have nothing to do here)
        """Called after each optimizer step."""


class Method(Protocol):
    """Options of one way to train, in a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def caption(self, photos: Sequence[Example], prompt: str) -> list[Example]:
        """The photos with the captions that this method trains on; `prompt` is what those have that
        bring none of their own. ValueError for captions that it can do nothing with."""
        ...

    def check(self, config: TrainingConfig) -> None:
        """ValueError for settings of the run that do not go together with the method, told before
        anything is loaded."""
        ...

    def attach(
        self, model: ModelFamily, config: TrainingConfig, photos: Sequence[Example]
    ) -> Trainable:
        """Make the model trainable this way. The run's learning rate holds where the options name
        none. ValueError for settings that do not go together with the model or the photos."""
        ...


def thaw(module: nn.Module) -> list[nn.Parameter]:
    """The module's parameters, made trainable, as fp32 of their own."""
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.float32)
        parameter.requires_grad_(True)
    return parameters
