"""Scores the previews of a run while it trains, and tells which step is the best so far."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import memory
from ..data.cropping import fit
from ..data.examples import Example
from ..data.images import parse_color, read_image
from ..observer import Observer, ScoreReport
from ..settings.config import TrainingConfig
from ..training.session import Session
from . import best_step
from .best_step import PreviewEmbeddings, StepScorer
from .encoders import ImageEncoder

logger = logging.getLogger(__name__)

ROUNDING = 1e-3
"""How much the cosines of two reports on the same base model may differ."""


class PreviewScorer:
    """Draws and scores previews, and adds the reports to `session.scores`."""

    def __init__(self, drawer: _PreviewDrawer, step_scorer: StepScorer, base: ScoreReport) -> None:
        self._drawer, self._step_scorer, self._base = drawer, step_scorer, base
        self._session, self._observer = drawer.session, drawer.observer
        self._has_warned = False

    @classmethod
    def from_base_model(
        cls, session: Session, encoder: ImageEncoder, photos: Sequence[Example], observer: Observer
    ) -> PreviewScorer:
        """Draw and score the previews of the base model, so call this before the session's weights
        change. Raises ValueError if memory does not suffice, or if the encoder cannot tell the
        previews from the photos."""
        if not _class_prompts(session.config):
            logger.info("There is no class prompt, so it is not scored whether the class is kept.")
        drawer = _PreviewDrawer(session=session, encoder=encoder, observer=observer)
        drawn = drawer.draw()
        if not drawn:
            raise ValueError(
                "The base model's previews could not be drawn, so there is nothing to compare "
                "scores with; the warning before this explains why. Choose no judge to train "
                "without scores."
            )
        observer.on_preview(0, drawn[: drawer.num_previews])
        base = drawer.embed(drawn)
        step_scorer = StepScorer(
            base,
            encoder.embed_images(_read_photos(photos, session)),
            encoder.embed_prompts(session.config.preview.prompts),
            session.config.scoring,
        )
        return cls(drawer, step_scorer, step_scorer.report(0, base))

    def begin(self) -> None:
        """Call this after the session has loaded the state that it resumes from, if any."""
        scores = self._session.scores
        if scores and not _have_same_base(scores[0], self._base):
            logger.warning(
                "The scores up to step %d come from another judge or other prompts and cannot be "
                "compared. Scoring starts over.", scores[-1].step,
            )  # fmt: skip
            scores.clear()
        if not scores:
            self._add(self._base)

    def previews(self) -> list[np.ndarray]:
        """Draw and score one image [H, W, 3] uint8 per preview prompt. Returns an empty list if
        memory runs out. If scoring fails, it only logs a warning."""
        drawn = self._drawer.draw()
        if drawn:
            self._score(drawn)
        return drawn[: self._drawer.num_previews]

    def is_best(self, step: int) -> bool:
        """Whether this is the best step so far."""
        top = best_step.best(self._session.scores)
        return top is not None and top.step == step

    def _score(self, drawn: Sequence[np.ndarray]) -> None:
        step = len(self._session.reports)
        try:
            self._add(self._step_scorer.report(step, self._drawer.embed(drawn)))
        except (ValueError, *memory.OUT_OF_MEMORY) as error:
            logger.warning("The previews of step %d are not scored. %s", step, error)
            return
        self._warn_of_overfitting()

    def _warn_of_overfitting(self) -> None:
        scores = self._session.scores
        past, top = best_step.overfitting(scores), best_step.best(scores)
        if past and top and not self._has_warned:
            logger.warning(
                "Overfitting since step %d: likeness has stopped improving while prompt or class "
                "scores fall. Best: %s. Now: %s.", past.step, best_step.describe(top),
                best_step.describe(scores[-1]),
            )  # fmt: skip
            self._has_warned = True

    def _add(self, report: ScoreReport) -> None:
        self._session.scores.append(report)
        self._observer.on_score(report)


@dataclass(frozen=True, kw_only=True, slots=True)
class _PreviewDrawer:
    """Draws the preview prompts and the class prompt, and embeds the images."""

    session: Session
    encoder: ImageEncoder
    observer: Observer

    @property
    def num_previews(self) -> int:
        return len(self.session.config.preview.prompts)

    def draw(self) -> list[np.ndarray]:
        """The previews, then the class images, each [H, W, 3] uint8; empty if memory runs out."""
        config = self.session.config
        prompts = [*config.preview.prompts, *_class_prompts(config)]
        return self.session.draw(prompts, self.observer)

    def embed(self, drawn: Sequence[np.ndarray]) -> PreviewEmbeddings:
        class_images = drawn[self.num_previews :]
        return PreviewEmbeddings(
            previews=self.encoder.embed_images(drawn[: self.num_previews]),
            class_images=self.encoder.embed_images(class_images) if class_images else None,
        )


def _class_prompts(config: TrainingConfig) -> list[str]:
    """The class prompt, once for each class image to draw; empty if there is none."""
    class_prompt = config.scoring.class_prompt or config.prior.prompt
    return [class_prompt] * config.scoring.num_class_images if class_prompt else []


def _read_photos(photos: Sequence[Example], session: Session) -> list[np.ndarray]:
    """Each photo [H, W, 3] uint8, cropped to its centre and resized to the size of the previews."""
    dataset = session.config.dataset
    side = dataset.resolution or session.model.native_resolution
    background = parse_color(dataset.background)
    pixels = [fit(read_image(photo.path, background), (side, side))[0] for photo in photos]
    return [((p.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy() for p in pixels]


def _have_same_base(one: ScoreReport, other: ScoreReport) -> bool:
    """Whether two reports on the base model come from the same encoder and prompts."""
    pairs = zip(_cosines(one), _cosines(other), strict=True)
    return one.step == other.step and all(math.isclose(a, b, abs_tol=ROUNDING) for a, b in pairs)


def _cosines(report: ScoreReport) -> tuple[float, float, float]:
    return report.subject, report.prompt or 0.0, report.prior or 0.0
