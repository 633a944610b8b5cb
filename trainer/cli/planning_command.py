"""The command `python -m trainer plan`."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from .. import toy
from ..families.shapes import read_shape
from ..planning.table import cases, rows
from ..settings.config import (
    DatasetConfig,
    FrozenWeights,
    ModelOptions,
    OptimizerConfig,
    Precision,
    TrainingConfig,
    Weights,
)

NOTE = (
    "Counted, not measured: GB allocated at the peak of a run. Usable is what a card of that size "
    "leaves beside the desktop and CUDA itself. b4: four photos per pass; recomputed: with "
    "gradient_checkpointing."
)


@dataclass(frozen=True, kw_only=True)
class PlanTable:
    """Show which settings fit which card, for the given ones or the best that fit."""

    base: Path | None = None
    """A checkpoint, or "toy". None: Stable Diffusion 1.5 and XL, whose sizes are known."""
    resolution: int | None = None
    """Width and height in pixels. None: the model's own size."""
    batch_size: int = 4
    """Photos per step; fewer if those do not fit."""
    precision: Precision = "fp32"
    """Number format of the computation. fp32: the best that fits."""
    weights: Weights = "fp32"
    """Number format of the trained weights. fp32: the best that fits."""
    frozen_weights: FrozenWeights = "precision"
    """Number format of the model's weights beside a LoRA. precision: the best that fits."""
    rank: int = 16
    """Rank of the LoRAs."""
    optimizer: str = "AdamW"
    """Optimizer. AdamW: the best that fits."""
    gradient_release: bool = False
    """Update each weight as soon as its gradient is known. Off: if it is needed."""
    offload: bool = False
    """Keep the optimizer's state in main memory. Off: if it is needed."""
    gradient_checkpointing: bool = False
    """Recompute activations. Off: if it is needed."""
    ema: bool = False
    """Keep a running average of the weights."""
    options: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    given: tyro.conf.Fixed[frozenset[str]] = frozenset()
    """Names of the settings that flags set."""

    def run(self) -> None:
        shape = read_shape(toy.resolve(self.base), self.options) if self.base else None
        given = frozenset({"optimizer": "optimizer.name"}.get(name, name) for name in self.given)
        for line in rows(cases(self._config(), shape, self.rank), given):
            logging.info("%s", line)
        logging.info("%s", NOTE)

    def _config(self) -> TrainingConfig:
        return TrainingConfig(
            base=self.base or Path(),
            dataset=DatasetConfig(
                photos=(Path(),), prompt="a photo of sks dog", resolution=self.resolution
            ),
            optimizer=OptimizerConfig(name=self.optimizer),
            batch_size=self.batch_size,
            precision=self.precision,
            weights=self.weights,
            frozen_weights=self.frozen_weights,
            gradient_release=self.gradient_release,
            offload=self.offload,
            gradient_checkpointing=self.gradient_checkpointing,
            ema=self.ema,
        )
