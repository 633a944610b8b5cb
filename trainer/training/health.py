"""Checks of the losses and gradients of a run."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence

from ..settings.config import TrainingConfig

logger = logging.getLogger(__name__)

NOW, BEFORE = 30, 100
"""The median loss of the last `NOW` steps is compared with that of up to `BEFORE` steps before
them. A single loss says little: for one photo it varies tenfold with the noise drawn."""
DIVERGED = 3.0
"""Factor by which the median loss rises when training diverges. In healthy runs of the embedded
model with one photo per step, it rose by at most 1.8 over 20 steps."""
LOSS_OF_ZEROS = 1.0
"""The loss of a model that always predicts zeros: the variance of the noise."""
MAX_SKIPPED = 20
"""How many steps in a row fp16 may skip. At the start of a run it skips up to 16, until it has
found a loss scale at which the gradients do not overflow."""


class Health:
    """Stops a run whose loss or gradients become NaN or infinite, and warns when it diverges."""

    def __init__(self, config: TrainingConfig) -> None:
        self._rate, self._precision = config.optimizer.learning_rate, config.precision
        self._is_diverging = False
        self._num_skipped = 0

    def require_finite(self, value: float, what: str, step: int) -> None:
        """Raises FloatingPointError if the value is NaN or infinite."""
        if math.isfinite(value):
            return
        advice = ", or choose precision bf16 or fp32" if self._precision == "fp16" else ""
        raise FloatingPointError(
            f"The {what} became {value} at step {step}. Lower optimizer.learning_rate (now "
            f"{self._rate:g}){advice}."
        )

    def require_finite_gradient(self, norm: float, step: int) -> None:
        """The same for the norm of the gradients, except in fp16, which skips such a step."""
        if self._precision != "fp16":
            self.require_finite(norm, "gradient", step)

    def check_losses(self, losses: Sequence[float]) -> None:
        """Warn when training starts to diverge. `losses` are those of the photos at every step so
        far."""
        now, before = losses[-NOW:], losses[-NOW - BEFORE : -NOW]
        if len(now) < NOW:
            return
        current = statistics.median(now)
        usual = statistics.median(before) if len(before) >= NOW else math.inf
        is_useless = current > LOSS_OF_ZEROS > losses[0]
        was_diverging = self._is_diverging
        self._is_diverging = is_useless or current > DIVERGED * usual
        if self._is_diverging and not was_diverging:
            logger.warning(
                "The loss has risen to %.3g at step %d, %s. Training is diverging: lower "
                "optimizer.learning_rate (now %g), or train fewer steps.",
                current, len(losses),
                "worse than a model that always predicts zeros" if is_useless
                else f"far above the {usual:.3g} before",
                self._rate,
            )  # fmt: skip

    def check_scale(self, scale: float, step: int, *, was_skipped: bool) -> None:
        """Raises FloatingPointError if fp16 keeps skipping the same step although the loss scale
        falls each time."""
        self._num_skipped = self._num_skipped + 1 if was_skipped else 0
        if self._num_skipped >= MAX_SKIPPED or scale < 1:
            raise FloatingPointError(
                f"In fp16 the gradients of step {step} overflowed {self._num_skipped} times in a "
                "row. Choose precision bf16 or fp32, or lower optimizer.learning_rate (now "
                f"{self._rate:g})."
            )
