"""The run whose memory is estimated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..data.batches import class_images_per_step, taught_per_step
from ..families.base import parts_by_name
from ..families.shapes import ModelShape, NetworkShape
from ..methods.base import Method
from ..settings.config import TrainingConfig
from .adapters import AdapterShapes, adapters_of

Changes = Mapping[str, Any]
"""Settings by their dotted names."""


def setting(config: TrainingConfig, name: str) -> Any:
    """The value of a setting by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


@dataclass(frozen=True, slots=True)
class Job:
    """What is estimated: a run with these settings."""

    config: TrainingConfig
    method: Method
    model: ModelShape
    on_cuda: bool = True
    num_processes: int = 1
    """How many share the images of a step; the memory is that of one of them."""

    def changed(self, changes: Changes) -> Job:
        """With some settings changed. Raises ValueError for values that cannot be used."""
        nested: dict[str, Any] = {}
        for name, value in changes.items():
            heading, _, last = name.rpartition(".")
            (nested.setdefault(heading, {}) if heading else nested)[last] = value
        return replace(self, config=self.config.replace(nested))

    @property
    def resolution(self) -> int:
        return self.config.dataset.resolution or self.model.resolution

    @property
    def precision(self) -> str:
        """fp16 counts as bf16: their numbers are equally large."""
        return "fp32" if self.config.precision == "fp32" else "bf16"

    @property
    def side(self) -> int:
        """Width and height of the latents."""
        return self.resolution // self.model.latent_factor

    @property
    def is_in_8_bits(self) -> bool:
        """Whether frozen weights are stored in 8 bits."""
        return self.config.frozen_weights == "8 bit"

    @property
    def trained(self) -> list[NetworkShape]:
        """The networks whose weights are trained."""
        names = self.method.trained_parts
        return [shape for name, shape in self.networks.items() if name in names]

    @property
    def frozen_copies(self) -> list[NetworkShape]:
        """The networks that the teacher keeps as they were before training."""
        has_teacher = self.config.prior.teacher_weight > 0
        return [self.model.unet] if has_teacher and self.model.unet in self.trained else []

    @property
    def adapters(self) -> Mapping[str, AdapterShapes]:
        """By part: the adapters that are trained."""
        return adapters_of(self.method, self.model)

    @property
    def adapted(self) -> list[tuple[NetworkShape, AdapterShapes]]:
        """The networks that have adapters."""
        return [(self.networks[part], shapes) for part, shapes in self.adapters.items()]

    @property
    def networks(self) -> dict[str, NetworkShape]:
        """By part: the networks that are on the device during training steps."""
        is_encoding = self.method.encodes_captions_at_each_step
        return parts_by_name(self.model.unet, self.model.text_encoders if is_encoding else ())

    @property
    def images_per_pass(self) -> int:
        """The largest number of photos and class images that go through a U-Net at once, with
        photos that the teacher is asked about counted twice."""
        config = self.config
        others = [each(config) for each in (class_images_per_step, taught_per_step)]
        others = [-(-number // config.gradient_accumulation) for number in others]
        return -(-(config.batch_size + sum(others)) // self.num_processes)

    @property
    def num_shards(self) -> int:
        """Among how many processes the trained weights are split."""
        return self.num_processes if self.config.sharded else 1

    @property
    def has_several_passes(self) -> bool:
        """Whether a step may consist of several passes, which add up their gradients."""
        has_shapes = self.config.dataset.buckets and self.images_per_pass > 1
        return self.config.gradient_accumulation > 1 or has_shapes
