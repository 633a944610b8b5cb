"""The values that our nodes pass to each other, and their socket types. The values are small and
frozen; weights and images stay in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer.families.base import ModelFamily
from ..trainer.settings.config import ModelOptions, PreviewConfig, ScoringConfig
from ..trainer.storage.names import shown_name, without_ending

CATEGORY = "DreamBooth"
"""Where the menus and the Essentials tab show the nodes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A checkpoint file to train or to sample from, and the LoRAs that change it. The files are
    read when training or sampling starts."""

    path: Path
    family: type[ModelFamily]
    is_full_size: bool
    """Whether its layers are as wide as Stable Diffusion's, which ComfyUI's own loader requires."""
    embedding: Path | None = None
    """An embedding file, so that prompts can contain its placeholder."""
    options: ModelOptions = field(default_factory=ModelOptions)
    """The LoRAs are in the order in which they were trained or applied, the newest last."""

    @property
    def name(self) -> str:
        """What labels call it: the newest LoRA's file, or the checkpoint, without the extension."""
        return without_ending(shown_name((self.path, *self.options.loras)[-1]))

    def with_lora(self, lora: Path, strength: float = 1.0) -> ModelSource:
        """With one more LoRA, as the newest."""
        return self._with_loras([*self.options.loras_with_strengths, (lora, strength)])

    def without_newest_lora(self) -> ModelSource:
        return self._with_loras(self.options.loras_with_strengths[:-1])

    def strengthened(self, factor: float) -> ModelSource:
        """With the strength of the newest LoRA times `factor`. Unchanged if there is none."""
        if not self.options.loras:
            return self
        *older, (lora, strength) = self.options.loras_with_strengths
        return self._with_loras([*older, (lora, strength * factor)])

    def _with_loras(self, loras: Sequence[tuple[Path, float]]) -> ModelSource:
        strengths = tuple(strength for _, strength in loras)
        # The same as all 1, so that runs of the same model are the same run.
        strengths = () if set(strengths) <= {1.0} else strengths
        options = replace(
            self.options, loras=tuple(lora for lora, _ in loras), lora_strengths=strengths
        )
        return replace(self, options=options)


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
