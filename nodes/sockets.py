"""One socket type per value that travels on a wire between our nodes. All are small and frozen;
weights and images stay in their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer.settings.config import PreviewConfig, ScoringConfig

CATEGORY = "DreamBooth"
"""Where the menus and the Essentials tab show the nodes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A checkpoint file to train or to sample from. It is read only when that begins."""

    path: Path
    family: str
    """Such as "Stable Diffusion 1"."""
    is_full_size: bool
    """Whether it has the widths of the published models, which ComfyUI's own loader insists on."""
    embedding: Path | None = None
    """The file of a learned word, whose placeholder prompts may then have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSettings:
    """What Optimizer Settings says, as changes to a run's configuration."""

    config: Mapping[str, Any]
    """As `TrainingConfig.replace` takes it."""
    method: Mapping[str, Any] = field(default_factory=dict)
    """Options of the training method."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewPlan:
    """What Preview Settings says."""

    preview: PreviewConfig = field(default_factory=PreviewConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    judge: Path | None = None
    """As `trainer.evaluation.encoders.load` takes it; None scores nothing."""


ModelSocket = io.Custom("DREAMBOOTH_MODEL")
"""Carries a ModelSource."""
SavesSocket = io.Custom("DREAMBOOTH_SAVES")
"""Carries a tuple of ModelSource: the stages of one training, in their order."""
DatasetSocket = io.Custom("DREAMBOOTH_DATASET")
"""Carries a `trainer.config.DatasetConfig`."""
ClassDatasetSocket = io.Custom("DREAMBOOTH_CLASS_DATASET")
"""Carries a `trainer.config.PriorConfig`, whose weight DreamBooth Train sets."""
OptimizerSocket = io.Custom("DREAMBOOTH_OPTIMIZER_SETTINGS")
"""Carries TrainingSettings."""
PreviewSocket = io.Custom("DREAMBOOTH_PREVIEW_SETTINGS")
"""Carries a PreviewPlan."""
