import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from trainer.evaluation.plots import grid, loss_curve, running_mean, score_chart
from trainer.observer import ScoreReport, StepReport

WHITE = 255


def report(step: int, instance_loss: float, prior_loss: float | None = None) -> StepReport:
    return StepReport(
        step=step, total_steps=100, loss=instance_loss + (prior_loss or 0),
        instance_loss=instance_loss, prior_loss=prior_loss, learning_rates={"unet": 1e-4 / step},
        grad_norm=1, steps_per_second=1, seconds_left=0, peak_megabytes=1,
    )  # fmt: skip


def find(sheet: np.ndarray, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of the pixels of exactly this colour."""
    y, x = np.nonzero((sheet == color).all(axis=-1))
    return int(y.min()), int(y.max()), int(x.min()), int(x.max())


def test_a_grid_shows_each_image_whole_row_by_row():
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200), (200, 0, 200)]
    images = [np.full((160, 140, 3), color, np.uint8) for color in colors]
    sheet = np.asarray(grid(images, columns=["before", "after"], rows=["a cup", "a cat", "a car"]))
    places = [find(sheet, color) for color in colors]
    for top, bottom, left, right in places:
        assert (bottom - top + 1, right - left + 1) == (160, 140)
    tops, lefts = [place[0] for place in places], [place[2] for place in places]
    assert tops[0] == tops[1] < tops[2] == tops[3] < tops[4] == tops[5]
    assert lefts[0] == lefts[2] == lefts[4] < lefts[1] == lefts[3] == lefts[5]
    assert (sheet[0] == WHITE).all()
    assert (sheet[:, -1] == WHITE).all()


def test_small_images_are_enlarged_without_blur():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    sheet = np.asarray(grid([image], columns=["x"], rows=["y"]))
    height, width = sheet.shape[:2]
    large = image.repeat(2, axis=0).repeat(2, axis=1)
    assert any(
        np.array_equal(sheet[y : y + 128, x : x + 128], large)
        for y in range(height - 127)
        for x in range(width - 127)
    )


@pytest.mark.parametrize("side", [64, 512])
def test_long_titles_stay_beside_the_images(side: int):
    """They are drawn, but not over an image or across the edge."""
    title = "a photo of sks cup standing on the grass in front of a house at night " * 4
    image = np.full((side, side, 3), (0, 200, 0), np.uint8)
    sheet = np.asarray(grid([image, image], columns=[title], rows=[title, "second"]))
    top, bottom, left, right = find(sheet, (0, 200, 0))
    shown = side if side > 128 else 2 * side
    assert (sheet == (0, 200, 0)).all(axis=-1).sum() == 2 * shown * shown
    assert (sheet[:top, left : right + 1] < 100).any()
    assert (sheet[top : bottom + 1, :left] < 100).any()
    for edge in (sheet[0], sheet[-1], sheet[:, 0], sheet[:, -1]):
        assert (edge == WHITE).all()


def test_captions_are_below_their_images_and_titles_keep_their_lines():
    image = np.full((128, 128, 3), (0, 200, 0), np.uint8)
    layout = {"columns": ["a"], "rows": ["two\nlines"]}
    plain, captioned = (
        np.asarray(grid([image], **layout, captions=captions)) for captions in ([], ["below"])
    )
    top, bottom, left, right = find(captioned, (0, 200, 0))
    assert bottom - top == right - left == 127
    assert (captioned[bottom + 1 :, left : right + 1] < 100).any()
    assert (plain[find(plain, (0, 200, 0))[1] + 1 :] == WHITE).all()
    inked_rows = (captioned[top : bottom + 1, :left] < 100).any(axis=(1, 2))
    assert np.count_nonzero(np.diff(inked_rows.astype(int)) == 1) == 2


def test_a_grid_needs_an_image_for_each_cell():
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="A grid") as error:
        grid([image, image[:2]], columns=["a", "b"], rows=["c", "d"])
    assert str(error.value) == (
        "A grid of 2 columns and 2 rows needs 4 images of one size, got 2 images of 2 sizes. "
        "Provide one image for each column of each row."
    )


def test_the_running_mean_is_the_mean_of_the_neighbours():
    values = np.random.default_rng(0).normal(size=200)
    means = running_mean(values.tolist())
    for i in (0, 3, 100, 199):
        assert means[i] == pytest.approx(values[max(0, i - 5) : i + 6].mean())
    assert running_mean([3.0, 5.0]).tolist() == [3, 5]


def inked(image: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((np.abs(image.astype(int) - color).max(axis=-1) < 12).sum())


def test_the_curves_show_the_losses():
    blue, orange = (31, 119, 180), (255, 127, 14)
    losses = [(step, 1 / step) for step in range(1, 101)]
    photos_only = np.asarray(loss_curve([report(*loss) for loss in losses]))
    with_prior = np.asarray(loss_curve([report(*loss, prior_loss=0.5) for loss in losses]))
    assert inked(photos_only, blue) > 300
    assert inked(photos_only, orange) == 0
    assert inked(with_prior, orange) > 300
    rates = loss_curve([report(*loss) for loss in losses], show_learning_rates=True)
    assert not np.array_equal(np.asarray(rates), photos_only)


def test_the_score_chart_has_a_bar_as_long_as_each_number():
    blue, orange = (31, 119, 180), (255, 127, 14)
    rows = [("a", {"subject": 0.25, "prompt": 0.5}), ("b", {"subject": 0.5})]
    sheet = np.asarray(score_chart(rows))
    near = np.abs(sheet.astype(int) - blue).max(axis=-1) < 12
    lengths = near.sum(axis=1)
    longest = [lengths[: len(lengths) // 2].max(), lengths[len(lengths) // 2 : -60].max()]
    assert longest[0] / longest[1] == pytest.approx(0.5, abs=0.06)
    assert inked(sheet, orange) > 300


def scored(step: int, learned: float, prompts: float | None, kept: float, balance: float):
    return ScoreReport(
        step=step, subject=0.5, prompt=0.5, prior=0.5, learned=learned, prompts_kept=prompts,
        class_kept=kept, balance=balance,
    )  # fmt: skip


def test_scores_are_below_the_losses():
    green, red = (44, 160, 44), (214, 39, 40)
    reports = [report(step, 1 / step) for step in range(1, 101)]
    scores = [
        scored(0, 0, 1, 1, 0),
        scored(50, 0.8, 0.9, 0.9, 0.85),
        scored(100, 0.9, 0.8, 0.9, 0.8),
    ]
    plain, with_scores = np.asarray(loss_curve(reports)), np.asarray(loss_curve(reports, scores))
    assert with_scores.shape[0] > plain.shape[0]
    assert inked(plain, green) == 0
    assert inked(with_scores, green) > 200
    without_prompts = [replace(one, prompts_kept=None) for one in scores]
    assert inked(np.asarray(loss_curve(reports, without_prompts)), green) == 0
    # Overfitting is shaded from where it begins.
    faint = tuple(round(255 + 0.12 * (level - 255)) for level in red)
    past = [*scores, scored(150, 0.8, 0.5, 0.9, 0.7), scored(200, 0.8, 0.5, 0.9, 0.7)]
    # Antialiased lines have a few such pixels too.
    assert inked(with_scores, faint) < 2000
    assert inked(np.asarray(loss_curve(reports, past)), faint) > 5000


def test_the_curves_do_not_import_pyplot():
    """In a separate process, because other tests may have imported it."""
    code = (
        "import sys; from trainer.evaluation.plots import loss_curve; from trainer.observer import "
        "StepReport; assert 'matplotlib' not in sys.modules; loss_curve([StepReport(step=1, "
        "total_steps=1, loss=1, instance_loss=1, prior_loss=None, learning_rates={}, grad_norm=1, "
        "steps_per_second=1, seconds_left=0, peak_megabytes=1)]); "
        "assert 'matplotlib.figure' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
