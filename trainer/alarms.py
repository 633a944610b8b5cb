"""Losses that tell of a run falling apart, before its pictures do."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence

from .observer import StepReport

logger = logging.getLogger(__name__)

EXPLOSION = 10
"""By how many times a loss above the median is an alarm. The noise that is drawn alone makes single
steps three or four times the median."""
WINDOW, LEAST = 100, 20
"""Steps of which the median is taken, and how many there must be."""


def warn_of_explosion(reports: Sequence[StepReport], learning_rate: float) -> None:
    """Log a warning if the last loss is far above those before, and the one before it was not."""
    if not reports or not _explodes(reports) or _explodes(reports[:-1]):
        return
    last, median = reports[-1], _median_before(reports)
    logger.warning(
        "The loss of step %d is %.3g, more than %d times the median of the steps before (%.3g). If "
        "it stays there the model is falling apart: lower optimizer.learning_rate (now %g).",
        last.step, last.loss, EXPLOSION, median, learning_rate,
    )  # fmt: skip


def _explodes(reports: Sequence[StepReport]) -> bool:
    if len(reports) <= LEAST:
        return False
    return reports[-1].loss > EXPLOSION * _median_before(reports)


def _median_before(reports: Sequence[StepReport]) -> float:
    return statistics.median(report.loss for report in reports[-1 - WINDOW : -1])
