"""What a process does that trains together with others and is not their leader: it makes the same
steps on its share of the images. It writes and reports nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from . import precision
from .data.batches import BatchStream
from .data.examples import Example
from .loop import load_model
from .methods.base import Method
from .observer import Observer
from .processes import Processes
from .sampling.class_images import draw_share
from .settings.config import PriorConfig, TrainingConfig
from .training.images import LatentsOf
from .training.session import Session


class Follower:
    """The tasks that the leader calls, in the order in which `loop.train` does the same."""

    def __init__(self, processes: Processes, device: torch.device) -> None:
        self._processes, self._device = processes, device

    def load(self, config: TrainingConfig, method: Method, photos: Sequence[Example]) -> None:
        self._config = config
        self._model = load_model(config, method, self._device)
        self._trainable = method.attach(self._model, config, photos)

    def draw_class_images(self, seeds: Sequence[int], prior: PriorConfig, resolution: int) -> None:
        with precision.autocast(self._config.precision, self._device):
            draw_share(self._model, seeds, prior, resolution, Observer(), self._processes)

    def begin(self, instance: LatentsOf, prior: LatentsOf) -> None:
        config, model, processes = self._config, self._model, self._processes
        batches = BatchStream(instance, prior, config, noise=model.noise, processes=processes)
        self._session = Session(config, model, self._trainable, batches, processes)

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._session.load_state(state)

    def state(self) -> None:
        self._session.state()

    def show_average(self, for_drawing: bool) -> None:  # noqa: FBT001 (a task's argument)
        self._shown = self._session.averaged(for_drawing=for_drawing)
        self._shown.__enter__()

    def hide_average(self) -> None:
        self._shown.__exit__(None, None, None)

    def step(self) -> None:
        self._session.step()
