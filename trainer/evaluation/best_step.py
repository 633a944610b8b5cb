"""Scores each step of a run by what it learned and what it kept, and finds the best step.

Two models are known beforehand: the base model draws what the prompt says but nothing of the
subject; a model that has memorised the photos draws them whatever the prompt says. A model in
training is placed between the two by three shares, each clipped to 0..1:

    learned = `metrics.progress` of the previews from the base model's previews to the photos
    prompts kept = `metrics.prompt_contrast` of the previews, divided by the base model's
    class kept = 1 - `metrics.progress` of the class images from the base model's to the photos

The balance is their weighted harmonic mean, which is low if any one of them is low. The best step
is the first one with the highest balance."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..observer import ScoreReport
from ..settings.config import ScoringConfig
from . import metrics

logger = logging.getLogger(__name__)

MIN_DISTANCE, MIN_CONTRAST = 0.1, 0.01
"""The smallest distance from the base model to the photos, and the smallest contrast between
prompts, that scores can be based on."""
SMALL_GAIN, CLEAR_LOSS = 0.05, 0.1
"""Changes of the shares that `overfitting` compares: a gain up to the first does not count, a loss
from the second on does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewEmbeddings:
    """Embeddings of what one model drew: N previews and C class images."""

    previews: Tensor
    """[N, D]"""
    class_images: Tensor | None
    """[C, D]; None without a class prompt."""


class StepScorer:
    """Scores steps of a run against its base model and its photos."""

    def __init__(
        self,
        base: PreviewEmbeddings,
        photos: Tensor,
        prompts: Tensor | None,
        config: ScoringConfig,
    ) -> None:
        """`photos` [M, D]; `prompts` [N, D] of the previews, or None from an encoder without a text
        encoder. Raises ValueError if the embeddings of base model and photos are nearly the same;
        warns if prompts cannot be told apart, and leaves them out of the scores."""
        self._base, self._photos, self._prompts, self._config = base, photos, prompts, config
        if metrics.distance_between_means(base.previews, photos) < MIN_DISTANCE:
            raise ValueError(
                "The scoring model sees no difference between the base model's previews and the "
                "photos, so it cannot tell when the subject is learned. Choose another scoring "
                "model (judge), or preview.prompts that the base model draws differently."
            )
        self._base_contrast = self._contrast(base)
        self._scores_prompts = self._base_contrast >= MIN_CONTRAST
        if prompts is not None and not self._scores_prompts:
            logger.warning(
                "According to the scoring model, the base model's previews do not follow the "
                "differences between their prompts, so prompts are not scored. Write "
                "preview.prompts that name different places."
            )

    def report(self, step: int, drawn: PreviewEmbeddings) -> ScoreReport:
        """The scores of a step from what the model drew after it."""
        photos, config = self._photos, self._config
        learned = _clip(metrics.progress(drawn.previews, self._base.previews, photos))
        prompts_kept = class_kept = prompt = prior = None
        if self._prompts is not None:
            prompt = metrics.prompt_fidelity(drawn.previews, self._prompts)
            if self._scores_prompts:
                prompts_kept = _clip(self._contrast(drawn) / self._base_contrast)
        if drawn.class_images is not None and self._base.class_images is not None:
            prior = metrics.prior_preservation(drawn.class_images, photos)
            lost = metrics.progress(drawn.class_images, self._base.class_images, photos)
            class_kept = _clip(1 - lost)
        weights = (config.subject_weight, config.prompt_weight, config.prior_weight)
        return ScoreReport(
            step=step,
            subject=metrics.subject_fidelity(drawn.previews, photos),
            prompt=prompt,
            prior=prior,
            learned=learned,
            prompts_kept=prompts_kept,
            class_kept=class_kept,
            balance=harmonic_mean((learned, prompts_kept, class_kept), weights),
        )

    def _contrast(self, drawn: PreviewEmbeddings) -> float:
        if self._prompts is None:
            return 0.0
        return metrics.prompt_contrast(drawn.previews, self._prompts) or 0.0


def _clip(share: float) -> float:
    return min(1.0, max(0.0, share))


def harmonic_mean(shares: Sequence[float | None], weights: Sequence[float]) -> float:
    """The weighted harmonic mean of the shares that are not None. 0 if one of them is 0, or if none
    has a weight."""
    counted = [(s, w) for s, w in zip(shares, weights, strict=True) if s is not None and w > 0]
    if not counted or any(share <= 0 for share, _ in counted):
        return 0.0
    return sum(weight for _, weight in counted) / sum(w / share for share, w in counted)


def best(reports: Sequence[ScoreReport]) -> ScoreReport | None:
    """The first report with the highest balance; None if all are 0."""
    found = max(reports, key=lambda report: report.balance, default=None)
    return found if found and found.balance > 0 else None


def overfitting(reports: Sequence[ScoreReport]) -> ScoreReport | None:
    """Where overfitting begins: after the best step, the first of two reports in a row that have
    learned hardly more than it, but kept clearly less of the prompts or the class. None if there is
    no such pair."""
    top = best(reports)
    if top is None:
        return None
    later = [report for report in reports if report.step > top.step]
    for one, following in zip(later, later[1:], strict=False):
        if _is_worse(one, top) and _is_worse(following, top):
            return one
    return None


def _is_worse(report: ScoreReport, top: ScoreReport) -> bool:
    losses = [
        before - now
        for before, now in (
            (top.prompts_kept, report.prompts_kept),
            (top.class_kept, report.class_kept),
        )
        if before is not None and now is not None
    ]
    return report.learned - top.learned <= SMALL_GAIN and max(losses, default=0.0) >= CLEAR_LOSS


def describe(report: ScoreReport) -> str:
    """Such as "step 150: 62 % learned, 91 % of prompts kept, 88 % of class kept, balance 0.78"."""
    parts = [f"{report.learned:.0%} learned"]
    for name, share in (("prompts", report.prompts_kept), ("class", report.class_kept)):
        if share is not None:
            parts.append(f"{share:.0%} of {name} kept")
    parts.append(f"balance {report.balance:.2f}")
    return f"step {report.step}: " + ", ".join(parts).replace("%", " %")
