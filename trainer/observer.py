"""The interface through which a run reports what happens. Its methods do nothing; subclasses
override those they need. An exception raised in any of them stops the run within one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """A completed optimizer step."""

    step: int
    """Counted from 1."""
    total_steps: int
    loss: float
    """instance_loss, plus the weight of the prior loss times prior_loss."""
    instance_loss: float
    prior_loss: float | None
    """None: the run has no class images."""
    learning_rates: dict[str, float]
    """By part of the model."""
    grad_norm: float | None
    """Norm before clipping. None: a skipped fp16 step that an older version recorded."""
    steps_per_second: float
    seconds_left: float
    peak_megabytes: float
    """Peak memory so far: of the device, or of the process on the CPU."""
    skipped_steps: int = 0
    """How often fp16 has skipped a step so far because gradients overflowed. Skipped steps are not
    counted in `step`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreReport:
    """The scores of the previews of one step: cosine similarities from the image encoder, and what
    they mean relative to the base model and the photos (see `best_step.py`). None: not scored."""

    step: int
    """0: the base model."""
    subject: float
    prompt: float | None
    prior: float | None
    learned: float
    """0 to 1, like the fields that follow."""
    prompts_kept: float | None
    class_kept: float | None
    balance: float


class Observer:
    """Receives the events of training, class image generation and sampling."""

    def on_progress(self, activity: str, done: int, total: int) -> None:
        """Progress of a long activity other than training steps: loading, caching, sampling."""

    def on_class_images(self, files: Sequence[Path], total: int, share: float) -> None:
        """`files` are the class images that exist so far, of `total`, by their seeds. `share` from
        0 to 1 also counts what is done of those that are being drawn."""

    def on_run(self, folder: Path) -> None:
        """The run is kept in this folder. The first event of such a run, also of a finished one."""

    def on_plan(self, text: str) -> None:
        """A memory plan was made: the memory that the run needs, and the settings that were chosen
        so that it fits."""

    def on_load(self, path: Path) -> None:
        """The run is about to load the model in this file. Not called if the run was already
        finished."""

    def on_resume(self, reports: Sequence[StepReport], scores: Sequence[ScoreReport]) -> None:
        """Earlier sessions of the run made these steps and scores; training continues."""

    def on_start(self, total_steps: int) -> None: ...

    def on_step(self, report: StepReport) -> None: ...

    def on_skipped_step(self, step: int) -> None:
        """fp16 skipped this step because gradients overflowed. It is repeated with the next batch
        and a lower loss scale."""

    def wants_to_finish(self) -> bool:
        """Called after each step. Return True to end training here, with the current weights as the
        run's result."""
        return False

    def wants_preview(self) -> bool:
        """Called after each step. Return True once for each request to draw the previews of this
        step, even if none are due."""
        return False

    def wants_save(self) -> bool:
        """Called after each step. Return True once for each request to save the weights of this
        step, even if no save is due."""
        return False

    def on_preview(self, step: int, images: list[np.ndarray]) -> None:
        """Previews were drawn: one uint8 image [H, W, 3] per preview prompt, in order. Step 0: with
        the base model."""

    def on_score(self, report: ScoreReport) -> None:
        """The previews of a step were scored."""

    def on_checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint was written to `path`."""

    def on_early_end(self, message: str) -> None:
        """The run ended before its last step. The message says after which step, and how to
        continue. Also called if such a run was finished and its result is reused."""
