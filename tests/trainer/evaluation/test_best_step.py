"""Where a model stands between its base and the photos, for embeddings written down here."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from trainer.evaluation.best_step import Balance, Seen, best, describe, harmonic_mean, overfitting
from trainer.observer import ScoreReport
from trainer.settings.config import ScoringConfig

CUP, SUBJECT, BEACH, SNOW = np.eye(4)
PROMPTS = torch.tensor(np.array([CUP + BEACH, CUP + SNOW]))
PHOTOS = torch.tensor(np.array([SUBJECT + 0.2 * BEACH, SUBJECT + 0.2 * SNOW]))
CLASS = torch.tensor(np.array([CUP, CUP]))


def rows(*vectors: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.array(vectors))


BASE = Seen(previews=rows(CUP + BEACH, CUP + SNOW), class_images=CLASS)


def balance(base: Seen = BASE, prompts: torch.Tensor | None = PROMPTS, **config) -> Balance:
    return Balance(base, PHOTOS, prompts, ScoringConfig(**config))


def report(step: int, learned: float, prompts: float | None, kept: float | None) -> ScoreReport:
    return ScoreReport(
        step=step, subject=0.5, prompt=0.5, prior=0.5, learned=learned, prompts_kept=prompts,
        class_kept=kept, balance=harmonic_mean((learned, prompts, kept), (1, 1, 1)),
    )  # fmt: skip


def test_the_base_model_has_learned_nothing_and_kept_everything():
    found = balance().report(0, BASE)
    assert (found.learned, found.prompts_kept, found.class_kept) == (0, 1, 1)
    assert found.balance == 0


def test_photos_whatever_the_prompt_have_kept_nothing():
    by_heart = Seen(previews=rows(PHOTOS[0].numpy(), PHOTOS[0].numpy()), class_images=PHOTOS)
    found = balance().report(9, by_heart)
    assert found.learned > 0.95
    assert found.prompts_kept == pytest.approx(0, abs=1e-9)
    assert found.class_kept == pytest.approx(0, abs=1e-9)
    assert found.balance == 0


def test_the_subject_where_the_prompt_says_has_the_better_balance():
    where_told = Seen(previews=rows(SUBJECT + BEACH, SUBJECT + SNOW), class_images=CLASS)
    anywhere = Seen(previews=rows(SUBJECT + BEACH, SUBJECT + BEACH), class_images=CLASS)
    right, wrong = (balance().report(5, seen) for seen in (where_told, anywhere))
    assert right.learned == pytest.approx(wrong.learned, abs=0.01)
    assert right.balance > wrong.balance
    assert right.class_kept == 1


def test_weights_decide_what_counts():
    seen = Seen(
        previews=rows(CUP + SUBJECT + BEACH, CUP + SUBJECT + SNOW),
        class_images=rows(CUP, CUP + SUBJECT),
    )
    equal = balance().report(5, seen)
    shares = np.array([equal.learned, equal.prompts_kept, equal.class_kept])
    assert ((shares > 0) & (shares < 1)).all()
    assert equal.balance == pytest.approx(3 / (1 / shares).sum())
    alone = balance(prompt_weight=0, prior_weight=0).report(5, seen)
    assert alone.balance == pytest.approx(alone.learned)
    for number, name in enumerate(("subject_weight", "prompt_weight", "prior_weight")):
        heavy = balance(**{name: 3}).report(5, seen)
        assert heavy.balance == pytest.approx(
            5 / (1 / shares + 2 * np.eye(3)[number] / shares).sum()
        )


def test_what_is_not_known_does_not_count():
    without = Seen(previews=rows(CUP + SUBJECT, SUBJECT), class_images=None)
    found = balance(Seen(previews=BASE.previews, class_images=None), None).report(3, without)
    assert (found.prompt, found.prompts_kept, found.prior, found.class_kept) == (None,) * 4
    assert found.balance == pytest.approx(found.learned)


def test_prompts_that_nothing_follows_are_warned_about(caplog):
    base = Seen(previews=rows(CUP + SNOW, CUP + BEACH), class_images=None)
    found = balance(base).report(1, base)
    assert found.prompts_kept is None
    assert found.prompt is not None
    assert caplog.messages == [
        "To the judge the base model's previews do not follow what differs between their prompts, "
        "so whether prompts are kept does not count. Write preview.prompts that name different "
        "places."
    ]


@pytest.mark.parametrize(("contrast", "is_warned"), [(0.009, True), (0.011, False)])
def test_a_contrast_of_a_hundredth_tells_prompts_apart(caplog, contrast, is_warned):
    """Each preview's cosine with its own prompt is the contrast, with the other's 0."""
    share = np.sqrt(1 - contrast**2)
    base = Seen(
        previews=rows(share * CUP + contrast * BEACH, share * CUP + contrast * SNOW),
        class_images=None,
    )
    found = balance(base, rows(BEACH, SNOW)).report(1, base)
    assert (caplog.messages != []) == is_warned
    assert (found.prompts_kept is None) == is_warned


@pytest.mark.parametrize(("way", "is_refused"), [(0.09, True), (0.11, False)])
def test_a_tenth_is_the_least_way_from_the_base_to_the_photos(way, is_refused):
    """Two vectors of length 1 lie twice the sine of half their angle apart."""
    angle = 2 * np.arcsin(way / 2)
    near = rows(np.cos(angle) * SUBJECT + np.sin(angle) * CUP)
    refusal = pytest.raises(ValueError, match="^To the judge the base model's previews are")
    with refusal if is_refused else nullcontext():
        Balance(Seen(previews=near, class_images=None), rows(SUBJECT), None, ScoringConfig())


def test_a_judge_that_sees_no_difference_is_refused():
    with pytest.raises(ValueError, match="judge") as error:
        balance(Seen(previews=PHOTOS, class_images=None))
    assert str(error.value) == (
        "To the judge the base model's previews are the same as the photos, so it cannot tell when "
        "the subject is learned. Choose another judge, or preview.prompts that the base model "
        "draws otherwise."
    )


def test_the_best_step_is_the_first_with_the_highest_balance():
    reports = [report(0, 0, 1, 1), report(50, 0.5, 0.9, 0.9), report(100, 0.8, 0.8, 0.8),
               report(150, 0.8, 0.8, 0.8), report(200, 1, 0.3, 0.2)]  # fmt: skip
    assert best(reports).step == 100
    assert best(reports[:1]) is None
    assert best([]) is None


def test_overfitting_begins_where_more_is_lost_and_no_more_learned():
    grows = [report(0, 0, 1, 1), report(50, 0.5, 0.9, 0.9), report(100, 0.8, 0.85, 0.8)]
    assert overfitting(grows) is None
    once = [*grows, report(150, 0.82, 0.7, 0.8)]
    assert overfitting(once) is None, "one report can be chance"
    assert overfitting([*once, report(200, 0.8, 0.85, 0.65)]).step == 150
    assert overfitting([*once, report(200, 0.82, 0.84, 0.79), report(250, 0.8, 0.6, 0.7)]) is None
    learns_on = [*grows, report(150, 0.9, 0.7, 0.65), report(200, 0.95, 0.7, 0.6)]
    assert overfitting(learns_on) is None


@pytest.mark.parametrize("what", ["prompts", "class"])
@pytest.mark.parametrize(
    ("more", "less", "is_past"),
    [(0.045, 0.105, True), (0.055, 0.105, False), (0.045, 0.095, False), (-0.3, 0.105, True)],
)
def test_5_percent_more_is_a_gain_and_10_percent_less_a_loss(what, more, less, is_past):
    kept = (0.8 - less, 0.8) if what == "prompts" else (0.8, 0.8 - less)
    reports = [report(1, 0.6, 0.8, 0.8), *[report(n, 0.6 + more, *kept) for n in (2, 3)]]
    assert best(reports).step == 1
    assert (overfitting(reports) is not None) == is_past


def test_a_report_in_words():
    assert describe(report(150, 0.62, 0.91, 0.88)) == (
        "step 150: 62 % learned, 91 % of prompts kept, 88 % of class kept, balance 0.78"
    )
    assert describe(report(0, 0, None, None)) == "step 0: 0 % learned, balance 0.00"
