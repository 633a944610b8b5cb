"""Scores of steps between base model and photos, for embeddings written down here."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from trainer.evaluation.best_step import (
    PreviewEmbeddings,
    StepScorer,
    best,
    describe,
    harmonic_mean,
    overfitting,
)
from trainer.observer import ScoreReport
from trainer.settings.config import ScoringConfig

CUP, SUBJECT, BEACH, SNOW = np.eye(4)
PROMPTS = torch.tensor(np.array([CUP + BEACH, CUP + SNOW]))
PHOTOS = torch.tensor(np.array([SUBJECT + 0.2 * BEACH, SUBJECT + 0.2 * SNOW]))
CLASS = torch.tensor(np.array([CUP, CUP]))


def rows(*vectors: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.array(vectors))


BASE = PreviewEmbeddings(previews=rows(CUP + BEACH, CUP + SNOW), class_images=CLASS)


def scorer(
    base: PreviewEmbeddings = BASE, prompts: torch.Tensor | None = PROMPTS, **config
) -> StepScorer:
    return StepScorer(base, PHOTOS, prompts, ScoringConfig(**config))


def report(step: int, learned: float, prompts: float | None, kept: float | None) -> ScoreReport:
    return ScoreReport(
        step=step, subject=0.5, prompt=0.5, prior=0.5, learned=learned, prompts_kept=prompts,
        class_kept=kept, balance=harmonic_mean((learned, prompts, kept), (1, 1, 1)),
    )  # fmt: skip


def test_the_base_model_has_learned_nothing_and_kept_everything():
    found = scorer().report(0, BASE)
    assert (found.learned, found.prompts_kept, found.class_kept) == (0, 1, 1)
    assert found.balance == 0


def test_a_model_that_memorised_the_photos_has_kept_nothing():
    memorised = PreviewEmbeddings(
        previews=rows(PHOTOS[0].numpy(), PHOTOS[0].numpy()), class_images=PHOTOS
    )
    found = scorer().report(9, memorised)
    assert found.learned > 0.95
    assert found.prompts_kept == pytest.approx(0, abs=1e-9)
    assert found.class_kept == pytest.approx(0, abs=1e-9)
    assert found.balance == 0


def test_following_the_prompts_improves_the_balance():
    followed = PreviewEmbeddings(previews=rows(SUBJECT + BEACH, SUBJECT + SNOW), class_images=CLASS)
    ignored = PreviewEmbeddings(previews=rows(SUBJECT + BEACH, SUBJECT + BEACH), class_images=CLASS)
    right, wrong = (scorer().report(5, seen) for seen in (followed, ignored))
    assert right.learned == pytest.approx(wrong.learned, abs=0.01)
    assert right.balance > wrong.balance
    assert right.class_kept == 1


def test_weights_decide_what_counts():
    seen = PreviewEmbeddings(
        previews=rows(CUP + SUBJECT + BEACH, CUP + SUBJECT + SNOW),
        class_images=rows(CUP, CUP + SUBJECT),
    )
    equal = scorer().report(5, seen)
    shares = np.array([equal.learned, equal.prompts_kept, equal.class_kept])
    assert ((shares > 0) & (shares < 1)).all()
    assert equal.balance == pytest.approx(3 / (1 / shares).sum())
    alone = scorer(prompt_weight=0, prior_weight=0).report(5, seen)
    assert alone.balance == pytest.approx(alone.learned)
    for number, name in enumerate(("subject_weight", "prompt_weight", "prior_weight")):
        heavy = scorer(**{name: 3}).report(5, seen)
        assert heavy.balance == pytest.approx(
            5 / (1 / shares + 2 * np.eye(3)[number] / shares).sum()
        )


def test_missing_scores_do_not_count():
    without = PreviewEmbeddings(previews=rows(CUP + SUBJECT, SUBJECT), class_images=None)
    base = PreviewEmbeddings(previews=BASE.previews, class_images=None)
    found = scorer(base, None).report(3, without)
    assert (found.prompt, found.prompts_kept, found.prior, found.class_kept) == (None,) * 4
    assert found.balance == pytest.approx(found.learned)


def test_prompts_that_the_base_model_does_not_follow_are_warned_about(caplog):
    base = PreviewEmbeddings(previews=rows(CUP + SNOW, CUP + BEACH), class_images=None)
    found = scorer(base).report(1, base)
    assert found.prompts_kept is None
    assert found.prompt is not None
    assert caplog.messages == [
        "According to the scoring model, the base model's previews do not follow the differences "
        "between their prompts, so prompts are not scored. Write preview.prompts that name "
        "different places."
    ]


@pytest.mark.parametrize(("contrast", "is_warned"), [(0.009, True), (0.011, False)])
def test_prompts_need_a_contrast_of_a_hundredth(caplog, contrast, is_warned):
    """Each preview's cosine with its own prompt is the contrast; with the other prompt it is 0."""
    share = np.sqrt(1 - contrast**2)
    base = PreviewEmbeddings(
        previews=rows(share * CUP + contrast * BEACH, share * CUP + contrast * SNOW),
        class_images=None,
    )
    found = scorer(base, rows(BEACH, SNOW)).report(1, base)
    assert (caplog.messages != []) == is_warned
    assert (found.prompts_kept is None) == is_warned


@pytest.mark.parametrize(("distance", "is_refused"), [(0.09, True), (0.11, False)])
def test_base_model_and_photos_need_a_distance_of_a_tenth(distance, is_refused):
    """The distance of two vectors of length 1 is twice the sine of half the angle between them."""
    angle = 2 * np.arcsin(distance / 2)
    near = PreviewEmbeddings(
        previews=rows(np.cos(angle) * SUBJECT + np.sin(angle) * CUP), class_images=None
    )
    refusal = pytest.raises(ValueError, match="^The scoring model sees no difference between")
    with refusal if is_refused else nullcontext():
        StepScorer(near, rows(SUBJECT), None, ScoringConfig())


def test_an_encoder_that_sees_no_difference_is_refused():
    with pytest.raises(ValueError, match="no difference") as error:
        scorer(PreviewEmbeddings(previews=PHOTOS, class_images=None))
    assert str(error.value) == (
        "The scoring model sees no difference between the base model's previews and the photos, so "
        "it cannot tell when the subject is learned. Choose another scoring model (judge), or "
        "preview.prompts that the base model draws differently."
    )


def test_the_best_step_is_the_first_with_the_highest_balance():
    reports = [report(0, 0, 1, 1), report(50, 0.5, 0.9, 0.9), report(100, 0.8, 0.8, 0.8),
               report(150, 0.8, 0.8, 0.8), report(200, 1, 0.3, 0.2)]  # fmt: skip
    assert best(reports).step == 100
    assert best(reports[:1]) is None
    assert best([]) is None


def test_overfitting_begins_where_scores_fall_and_likeness_does_not_rise():
    grows = [report(0, 0, 1, 1), report(50, 0.5, 0.9, 0.9), report(100, 0.8, 0.85, 0.8)]
    assert overfitting(grows) is None
    once = [*grows, report(150, 0.82, 0.7, 0.8)]
    assert overfitting(once) is None, "a single report may be chance"
    assert overfitting([*once, report(200, 0.8, 0.85, 0.65)]).step == 150
    assert overfitting([*once, report(200, 0.82, 0.84, 0.79), report(250, 0.8, 0.6, 0.7)]) is None
    still_learning = [*grows, report(150, 0.9, 0.7, 0.65), report(200, 0.95, 0.7, 0.6)]
    assert overfitting(still_learning) is None


@pytest.mark.parametrize("what", ["prompts", "class"])
@pytest.mark.parametrize(
    ("gain", "loss", "is_past"),
    [(0.045, 0.105, True), (0.055, 0.105, False), (0.045, 0.095, False), (-0.3, 0.105, True)],
)
def test_a_gain_counts_from_5_percent_and_a_loss_from_10_percent(what, gain, loss, is_past):
    kept = (0.8 - loss, 0.8) if what == "prompts" else (0.8, 0.8 - loss)
    reports = [report(1, 0.6, 0.8, 0.8), *[report(n, 0.6 + gain, *kept) for n in (2, 3)]]
    assert best(reports).step == 1
    assert (overfitting(reports) is not None) == is_past


def test_describes_a_report():
    assert describe(report(150, 0.62, 0.91, 0.88)) == (
        "step 150: 62 % learned, 91 % of prompts kept, 88 % of class kept, balance 0.78"
    )
    assert describe(report(0, 0, None, None)) == "step 0: 0 % learned, balance 0.00"
