"""The values that our nodes pass to each other, and their socket types. The values are small and
frozen; weights and images stay in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer.families.base import ModelFamily
from ..trainer.settings.config import ModelOptions, PreviewConfig, ScoringConfig

CATEGORY = "DreamBooth"
"""Where the menus and the Essentials tab show the nodes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A checkpoint file to train or to sample from. It is read when training or sampling starts."""

    path: Path
    family: type[ModelFamily]
    is_full_size: bool
    """Whether its layers are as wide as Stable Diffusion's, which ComfyUI's own loader requires."""
    embedding: Path | None = None
    """An embedding file, so that prompts can contain its placeholder."""
    options: ModelOptions = field(default_factory=ModelOptions)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSettings:
    """The output of Optimizer Settings, as changes to a run's settings."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """Argument of `TrainingConfig.replace`."""
    method: Mapping[str, Any] = field(default_factory=dict)
    """Options of the training method."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewPlan:
    """The output of Preview Settings."""

    preview: PreviewConfig = field(default_factory=PreviewConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    judge: Path | None = None
    """CLIP or DINO: argument of `trainer.evaluation.encoders.load`. None: no scores."""


ModelSocket = io.Custom("DREAMBOOTH_MODEL")
"""Carries a ModelSource."""
SavesSocket = io.Custom("DREAMBOOTH_SAVES")
"""Carries a tuple of ModelSource: the stages of one run, in order."""
DatasetSocket = io.Custom("DREAMBOOTH_DATASET")
"""Carries a DatasetConfig."""
ClassDatasetSocket = io.Custom("DREAMBOOTH_CLASS_DATASET")
"""Carries a PriorConfig, whose weight DreamBooth Train sets."""
OptimizerSocket = io.Custom("DREAMBOOTH_OPTIMIZER_SETTINGS")
"""Carries TrainingSettings."""
PreviewSocket = io.Custom("DREAMBOOTH_PREVIEW_SETTINGS")
"""Carries a PreviewPlan."""
