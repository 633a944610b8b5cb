"""What a run tells the outside, and knows no receiver of: each method does nothing until a subclass
says otherwise. Raising from any of them stops the run, from then on within one step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One optimizer step, just made."""

    step: int
    """Counted from 1."""
    total_steps: int
    loss: float
    """instance_loss + prior weight x prior_loss."""
    instance_loss: float
    prior_loss: float | None
    """None without class images."""
    learning_rates: dict[str, float]
    """By part of the model."""
    grad_norm: float | None
    """Before clipping. None for a step of an older version that fp16 had skipped."""
    steps_per_second: float
    seconds_left: float
    peak_megabytes: float
    """The most memory taken so far: the device's, or the process's on the CPU."""
    skipped_steps: int = 0
    """Times so far that fp16 skipped a step because its gradients overflowed. They are not counted
    among the steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreReport:
    """What a judge makes of the previews of one step: its cosines, and what they mean for the way
    from the base model to the photos, as `best_step.py` explains. None for what cannot be told."""

    step: int
    """0 is the base model."""
    subject: float
    prompt: float | None
    prior: float | None
    learned: float
    """0 to 1, as all that follow."""
    prompts_kept: float | None
    class_kept: float | None
    balance: float


class Observer:
    """Hears what happens during training, class image generation and sampling."""

    def on_progress(self, activity: str, done: int, total: int) -> None:
        """Part of a long piece of work other than steps is done: loading, caching, sampling."""

    def on_load(self, path: Path) -> None:
        """The run takes the model in this file into memory next. A run that was finished before
        does not."""

    def on_start(self, total_steps: int) -> None: ...

    def on_step(self, report: StepReport) -> None: ...

    def on_skipped_step(self, step: int) -> None:
        """fp16 skipped this step because its gradients overflowed. It is made again, with the next
        images and a lower scale of the loss."""

    def wants_to_finish(self) -> bool:
        """Asked after each step: True makes it the last one. What was learned so far is then the
        run's result."""
        return False

    def on_preview(self, step: int, images: list[np.ndarray]) -> None:
        """One image [H, W, 3] uint8 per preview prompt, in their order."""

    def on_score(self, report: ScoreReport) -> None:
        """The previews of a step were judged."""

    def on_checkpoint(self, step: int, path: Path) -> None:
        """A complete checkpoint file stands at `path`."""
