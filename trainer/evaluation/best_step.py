"""How far a model in training has come from its base towards the photos, and where it should have
stopped.

Two models are known beforehand. The base model draws whatever the prompt says, and nothing of the
subject; one that has learned the photos by heart draws them whatever the prompt. A model in
training is put on the way from the one to the other:

    learned = `metrics.progress` of the previews, from the base model's to the photos
    prompts kept = `metrics.prompt_contrast` of the previews, as a share of the base model's
    class kept = 1 - `metrics.progress` of pictures of the class, from the base model's to the
        photos

each cut to 0..1. The balance is their weighted harmonic mean: as low as the lowest of them drags
it. The best step is the first that has the highest balance.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..observer import ScoreReport
from ..settings.config import ScoringConfig
from . import metrics

logger = logging.getLogger(__name__)

LEAST_WAY, LEAST_CONTRAST = 0.1, 0.01
"""With less between base model and photos, or between prompts, nothing can be told."""
FLAT, FALLEN = 0.05, 0.1
"""A gain that is none, and a loss that is one, in shares."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A judge's embeddings of what one model drew: N previews, C pictures of the class."""

    previews: Tensor
    """[N, D]"""
    class_images: Tensor | None
    """[C, D]; None where no class is known."""


class Balance:
    """The way from a base model to the photos."""

    def __init__(
        self, base: Seen, photos: Tensor, prompts: Tensor | None, config: ScoringConfig
    ) -> None:
        """`photos` [M, D], `prompts` [N, D] of the previews, None from a judge that does not read.
        ValueError if the judge sees no difference between photos and the base model's previews; a
        warning for the other measures, which then do not count."""
        self._base, self._photos, self._prompts, self._config = base, photos, prompts, config
        if metrics.way(base.previews, photos) < LEAST_WAY:
            raise ValueError(
                "To the judge the base model's previews are the same as the photos, so it cannot "
                "tell when the subject is learned. Choose another judge, or preview.prompts that "
                "the base model draws otherwise."
            )
        self._contrast = self._contrast_of(base)
        self._tells_prompts = self._contrast >= LEAST_CONTRAST
        if prompts is not None and not self._tells_prompts:
            logger.warning(
                "To the judge the base model's previews do not follow what differs between their "
                "prompts, so whether prompts are kept does not count. Write preview.prompts that "
                "name different places."
            )

    def report(self, step: int, seen: Seen) -> ScoreReport:
        """Where a model stands."""
        photos, config = self._photos, self._config
        learned = _cut(metrics.progress(seen.previews, self._base.previews, photos))
        prompts_kept = class_kept = prompt = prior = None
        if self._prompts is not None:
            prompt = metrics.prompt_fidelity(seen.previews, self._prompts)
            if self._tells_prompts:
                prompts_kept = _cut(self._contrast_of(seen) / self._contrast)
        if seen.class_images is not None and self._base.class_images is not None:
            prior = metrics.prior_preservation(seen.class_images, photos)
            made = metrics.progress(seen.class_images, self._base.class_images, photos)
            class_kept = _cut(1 - made)
        weights = (config.subject_weight, config.prompt_weight, config.prior_weight)
        return ScoreReport(
            step=step,
            subject=metrics.subject_fidelity(seen.previews, photos),
            prompt=prompt,
            prior=prior,
            learned=learned,
            prompts_kept=prompts_kept,
            class_kept=class_kept,
            balance=harmonic_mean((learned, prompts_kept, class_kept), weights),
        )

    def _contrast_of(self, seen: Seen) -> float:
        if self._prompts is None:
            return 0.0
        return metrics.prompt_contrast(seen.previews, self._prompts) or 0.0


def _cut(share: float) -> float:
    return min(1.0, max(0.0, share))


def harmonic_mean(shares: Sequence[float | None], weights: Sequence[float]) -> float:
    """Weighted, of those that there are; 0 where one of them is, or none counts."""
    counted = [(s, w) for s, w in zip(shares, weights, strict=True) if s is not None and w > 0]
    if not counted or any(share <= 0 for share, _ in counted):
        return 0.0
    return sum(weight for _, weight in counted) / sum(w / share for share, w in counted)


def best(reports: Sequence[ScoreReport]) -> ScoreReport | None:
    """The first with the highest balance; None where all are 0."""
    found = max(reports, key=lambda report: report.balance, default=None)
    return found if found and found.balance > 0 else None


def overfitting(reports: Sequence[ScoreReport]) -> ScoreReport | None:
    """Where it begins: after the best step, the first of two reports in a row that have learned no
    more, though less is kept of the prompts or the class. None as long as it has not."""
    top = best(reports)
    if top is None:
        return None
    later = [report for report in reports if report.step > top.step]
    for one, other in zip(later, later[1:], strict=False):
        if _is_past(one, top) and _is_past(other, top):
            return one
    return None


def _is_past(report: ScoreReport, top: ScoreReport) -> bool:
    falls = [
        before - now
        for before, now in (
            (top.prompts_kept, report.prompts_kept),
            (top.class_kept, report.class_kept),
        )
        if before is not None and now is not None
    ]
    return report.learned - top.learned <= FLAT and max(falls, default=0.0) >= FALLEN


def describe(report: ScoreReport) -> str:
    """Such as "step 150: 62 % learned, 91 % of prompts kept, 88 % of class kept, balance 0.78"."""
    parts = [f"{report.learned:.0%} learned"]
    for what, share in (("prompts", report.prompts_kept), ("class", report.class_kept)):
        if share is not None:
            parts.append(f"{share:.0%} of {what} kept")
    parts.append(f"balance {report.balance:.2f}")
    return f"step {report.step}: " + ", ".join(parts).replace("%", " %")
