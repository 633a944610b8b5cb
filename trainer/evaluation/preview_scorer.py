"""The judge at work during a run: previews in, a report and the best step out."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from .. import memory
from ..data.examples import Example
from ..data.images import fit, parse_color, read_image
from ..observer import Observer, ScoreReport
from ..training.session import Session
from . import best_step
from .best_step import Balance, Seen
from .encoders import ImageEncoder

logger = logging.getLogger(__name__)

SAME = 1e-3
"""In cosines: how much two reports on the base model may differ by rounding."""


class PreviewScorer:
    """Scores a session's previews, and adds the reports to `session.scores`."""

    def __init__(
        self, session: Session, encoder: ImageEncoder, photos: Sequence[Example], observer: Observer
    ) -> None:
        """To be made while the session's weights still are the base model's, whose pictures are
        drawn and scored first. ValueError if the judge can tell nothing of them, or memory does not
        suffice for them."""
        self._session, self._observer = session, observer
        config = session.config
        prompts = config.preview.prompts
        class_prompt = config.scoring.class_prompt or config.prior.prompt
        num_class_images = config.scoring.num_class_images if class_prompt else 0
        if not num_class_images:
            logger.info("No class prompt to score: whether the class is kept is not told.")
        self._encoder, self._num_previews = encoder, len(prompts)
        self._prompts = [*prompts, *[class_prompt] * num_class_images]
        drawn = self._draw()
        if not drawn:
            raise ValueError(
                "The base model's previews could not be drawn, so there is nothing to score: the "
                "warning before this says why. Name no judge to train without scores."
            )
        base, seen = self._see(drawn), encoder.embed_images(_pictures(photos, session))
        self._balance = Balance(base, seen, encoder.embed_prompts(prompts), config.scoring)
        self._base = self._balance.report(0, base)
        self._is_past = False

    def begin(self) -> None:
        """To be called once the session stands where the run goes on."""
        scores = self._session.scores
        if scores and not _is_same(scores[0], self._base):
            logger.warning(
                "The scores up to step %d were made with another judge or other prompts, and "
                "cannot be compared. Scoring begins anew.", scores[-1].step,
            )  # fmt: skip
            scores.clear()
        if not scores:
            self._add(self._base)

    def previews(self) -> list[np.ndarray]:
        """One image [H, W, 3] uint8 per preview prompt, and their scores in the session, unless the
        judge cannot make anything of them; none if memory runs out."""
        drawn = self._draw()
        if drawn:
            self._score(drawn)
        return drawn[: self._num_previews]

    def is_best(self, step: int) -> bool:
        """Whether this is the best step so far."""
        top = best_step.best(self._session.scores)
        return top is not None and top.step == step

    def _draw(self) -> list[np.ndarray]:
        return self._session.draw(self._prompts, self._observer)

    def _score(self, drawn: Sequence[np.ndarray]) -> None:
        step = len(self._session.reports)
        try:
            self._add(self._balance.report(step, self._see(drawn)))
        except (ValueError, *memory.OUT_OF_MEMORY) as error:
            logger.warning("The previews of step %d are not scored. %s", step, error)
            return
        past = best_step.overfitting(self._session.scores)
        if past and not self._is_past:
            top = best_step.best(self._session.scores)
            assert top, "nothing is past the best without one"
            logger.warning(
                "Overfitting since step %d: no more is learned than at the best step, and more is "
                "lost. Best: %s. Now: %s.", past.step, best_step.describe(top),
                best_step.describe(self._session.scores[-1]),
            )  # fmt: skip
            self._is_past = True

    def _add(self, report: ScoreReport) -> None:
        self._session.scores.append(report)
        self._observer.on_score(report)

    def _see(self, drawn: Sequence[np.ndarray]) -> Seen:
        others = drawn[self._num_previews :]
        return Seen(
            previews=self._encoder.embed_images(drawn[: self._num_previews]),
            class_images=self._encoder.embed_images(others) if others else None,
        )


def _pictures(photos: Sequence[Example], session: Session) -> list[np.ndarray]:
    """The middle of each photo [H, W, 3] uint8 at the size of the previews."""
    dataset = session.config.dataset
    side = dataset.resolution or session.model.native_resolution
    background = parse_color(dataset.background)
    pixels = [fit(read_image(photo.path, background), (side, side))[0] for photo in photos]
    return [((p.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy() for p in pixels]


def _is_same(one: ScoreReport, other: ScoreReport) -> bool:
    """Whether two reports on the base model came of one judge and the same prompts."""
    pairs = zip(_cosines(one), _cosines(other), strict=True)
    return one.step == other.step and all(math.isclose(a, b, abs_tol=SAME) for a, b in pairs)


def _cosines(report: ScoreReport) -> tuple[float, float, float]:
    return report.subject, report.prompt or 0.0, report.prior or 0.0
