"""The model before training, whose answers to the class prompt are trained on: prior preservation
without class images.

Shapes: B batch, of which the last n examples are taught."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .. import precision
from ..data.batch import Batch
from ..families.base import ModelFamily
from ..methods.adapters import adapters_in, switched_off
from ..settings.config import TrainingConfig
from .captions import CaptionEncoder


class Teacher:
    """Answers as the model did before training. Of a U-Net whose own weights are trained it keeps a
    frozen copy, in the number formats of the precision; adapters are switched off instead. Text is
    encoded once."""

    def __init__(self, config: TrainingConfig, model: ModelFamily) -> None:
        """Call it before the first step."""
        self._config, self._model = config, model
        self._captions = CaptionEncoder(model, frozen=True)
        self._adapters = adapters_in(model.unet)
        self._unet = None if self._adapters else _frozen_copy(model.unet, config.precision)
        if self._unet and config.channels_last:
            self._unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def move_to_device(self) -> None:
        """Encode the class prompt, and move the copy of the U-Net to the model's device."""
        model = self._model
        with (
            precision.autocast(self._config.precision, model.device),
            model.on_device(model.text_encoders),
            switched_off(adapters_in(model.text_encoders)),
        ):
            self._captions.fill_cache([self._config.prior.prompt])
        if self._unet:
            self._unet.to(model.device)

    def with_answers(self, targets: Tensor, batch: Batch, noisy_latents: Tensor) -> Tensor:
        """The targets [B, ...], with those of the taught examples replaced by the teacher's
        answers. Call it under the autocast of the training pass, and before that."""
        first = len(targets) - batch.num_taught
        if not batch.num_taught:
            return targets
        with torch.no_grad(), self._untrained():
            conditioning = self._captions.encode(batch.captions[first:], batch.framings[first:])
            answers = self._model.predict(noisy_latents[first:], batch.times[first:], conditioning)
        return torch.cat([targets[:first], answers.to(targets.dtype)])

    @contextmanager
    def _untrained(self) -> Iterator[None]:
        """Inside, the model predicts with the U-Net as it was before training."""
        trained = self._model.unet
        self._model.unet = self._unet or trained
        try:
            with switched_off(self._adapters):
                yield
        finally:
            self._model.unet = trained


def _frozen_copy(network: nn.Module, name: str) -> nn.Module:
    copied = copy.deepcopy(network).requires_grad_(False)
    dtypes = precision.frozen_dtypes(copied, name)
    for parameter_name, parameter in copied.named_parameters():
        parameter.data = parameter.data.to(dtypes[parameter_name])
    return copied
