"""What the numbers of a run tell of its health."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence

from ..settings.config import TrainingConfig

logger = logging.getLogger(__name__)

NOW, BEFORE = 30, 100
"""Steps over which the losses are compared: the last ones, with at most so many before them. A
single step's says nothing: of one photo it varies tenfold with the noise that was drawn."""
EXPLOSION = 3.0
"""By what factor the median loss rises when a run falls apart. In healthy runs of the embedded
model, one photo per step, it rose by no more than 1.8 over 20 steps."""
OF_NOTHING = 1.0
"""The loss of a model that predicts nothing: the noise's variance."""
MAX_SKIPPED = 20
"""Steps in a row that fp16 may skip. It skips some at the beginning, at most 16, until it has found
a scale of the loss at which the gradients do not overflow."""


class Health:
    """Looks at each step's numbers: ends the run where they are none, warns of bad ones."""

    def __init__(self, config: TrainingConfig) -> None:
        self._rate, self._precision = config.optimizer.learning_rate, config.precision
        self._is_exploding = False
        self._num_skipped = 0

    def require_finite(self, value: float, what: str, step: int) -> None:
        """FloatingPointError for NaN and infinity."""
        if math.isfinite(value):
            return
        advice = ", or choose precision bf16 or fp32" if self._precision == "fp16" else ""
        raise FloatingPointError(
            f"The {what} became {value} at step {step}. Lower optimizer.learning_rate (now "
            f"{self._rate:g}){advice}."
        )

    def look_at_losses(self, losses: Sequence[float]) -> None:
        """Warn, once per stretch, of losses far too high. Takes those of the photos so far."""
        now, before = losses[-NOW:], losses[-NOW - BEFORE : -NOW]
        if len(now) < NOW:
            return
        current = statistics.median(now)
        usual = statistics.median(before) if len(before) >= NOW else math.inf
        is_useless = current > OF_NOTHING > losses[0]
        was_exploding, self._is_exploding = (
            self._is_exploding, is_useless or current > EXPLOSION * usual
        )  # fmt: skip
        if self._is_exploding and not was_exploding:
            logger.warning(
                "The loss is %.3g by step %d, %s. The model is falling apart: lower "
                "optimizer.learning_rate (now %g), or train fewer steps.",
                current, len(losses),
                "no better than of a model that predicts nothing" if is_useless
                else f"far above the {usual:.3g} before",
                self._rate,
            )  # fmt: skip

    def look_at_scale(self, scale: float, step: int, *, is_skipped: bool) -> None:
        """FloatingPointError if fp16 skips the same step again and again, each time with a lower
        scale."""
        self._num_skipped = self._num_skipped + 1 if is_skipped else 0
        if self._num_skipped >= MAX_SKIPPED or scale < 1:
            raise FloatingPointError(
                f"In fp16 the gradients of step {step} overflowed {self._num_skipped} times in a "
                "row. Choose precision bf16 or fp32, or lower optimizer.learning_rate (now "
                f"{self._rate:g})."
            )
