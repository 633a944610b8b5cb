"""What is trained: a Method holds frozen options, the Trainable it attaches is the live part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..families.base import ModelFamily


@dataclass(frozen=True, slots=True)
class Part:
    """Parameters that share a learning rate and are reported on together."""

    name: str
    """As the model's family calls it, such as "unet"."""
    parameters: list[nn.Parameter]
    learning_rate: float
    stop_step: int | None = None
    """The step after which it is left as it is; None trains it to the end."""


class Trainable(ABC):
    """What the optimizer may change of one model, and what of it goes into the file."""

    parts: list[Part]
    trains_text_encoder: bool
    """Whether captions must be encoded anew at each step."""

    @abstractmethod
    def part_tensors(self, part: Part) -> dict[str, Tensor]:
        """One part's trained tensors, under the names of the checkpoint file."""

    def file_tensors(self) -> dict[str, Tensor]:
        """All trained tensors, under the names of the checkpoint file."""
        tensors: dict[str, Tensor] = {}
        for part in self.parts:
            tensors.update(self.part_tensors(part))
        return tensors

    def after_step(self) -> None:  # noqa: B027 (most have nothing to do here)
        """Called after each optimizer step."""


class Method(Protocol):
    """Options of one way to train."""

    def attach(self, model: ModelFamily, learning_rate: float) -> Trainable:
        """Make the model trainable this way; `learning_rate` holds where the options name none."""
        ...


def thaw(module: nn.Module) -> list[nn.Parameter]:
    """The module's parameters, made trainable, as fp32 of their own."""
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.float32)
        parameter.requires_grad_(True)
    return parameters
