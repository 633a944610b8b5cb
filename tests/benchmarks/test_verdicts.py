from __future__ import annotations

import numpy as np
import pytest

from benchmarks.article.verdicts import compare, spread, summary

LOW = {0: 0.10, 1: 0.20, 2: 0.15}
HIGH = {0: 0.80, 1: 0.90, 2: 0.70}
NEAR = {0: 0.18, 1: 0.22, 2: 0.12}


def test_a_difference_above_twice_the_larger_standard_deviation_is_shown():
    finding = compare([HIGH], [LOW], expected="more", resolution=0.0)
    high, low = np.array(list(HIGH.values())), np.array(list(LOW.values()))
    assert finding.difference == pytest.approx(high.mean() - low.mean())
    assert finding.bar == pytest.approx(2 * max(high.std(ddof=1), low.std(ddof=1)))
    assert (finding.verdict, finding.num_seeds) == ("shown", 3)


def test_the_same_difference_with_the_other_sign_is_the_opposite():
    assert compare([LOW], [HIGH], expected="more", resolution=0.0).verdict == "the opposite"


def test_no_less_allows_more_and_a_difference_below_the_bar():
    for more, less, expected in ((HIGH, LOW, "shown"), (NEAR, HIGH, "not shown")):
        assert compare([more], [less], expected="no less", resolution=0.0).verdict == expected
    assert compare([LOW], [NEAR], expected="no less", resolution=0.0).verdict == "shown"


def test_a_difference_below_the_bar_only_shows_that_both_are_the_same():
    assert compare([NEAR], [LOW], expected="more", resolution=0.0).verdict == "not shown"
    assert compare([NEAR], [LOW], expected="same", resolution=0.0).verdict == "shown"
    assert compare([HIGH], [LOW], expected="same", resolution=0.0).verdict == "not shown"


def test_a_difference_below_one_image_does_not_count_even_if_all_seeds_agree():
    one, other = {0: 0.50, 1: 0.50, 2: 0.50}, {0: 0.52, 1: 0.52, 2: 0.52}
    assert compare([other], [one], expected="more", resolution=1 / 24).verdict == "not shown"
    assert compare([other], [one], expected="more", resolution=0.0).verdict == "shown"


def test_a_group_is_joined_seed_by_seed():
    first, second = {0: 0.9, 1: 0.2, 2: 0.3}, {0: 0.1, 1: 0.8, 2: 0.7}
    best = compare([first, second], [LOW], expected="more", resolution=0.0, join=max)
    mean = compare([first, second], [LOW], expected="more", resolution=0.0)
    assert best.difference == pytest.approx((0.9 + 0.8 + 0.7) / 3 - 0.15)
    assert mean.difference == pytest.approx(0.5 - 0.15)


def test_only_seeds_with_all_measurements_count():
    finding = compare([{0: 0.8, 1: 0.9}], [LOW], expected="more", resolution=0.0)
    assert (finding.num_seeds, finding.verdict) == (2, "too few seeds")
    assert finding.difference == pytest.approx(0.85 - 0.15)
    assert compare([{0: 0.8}], [LOW], expected="more", resolution=0.0).verdict == "too few seeds"
    assert compare([{}], [LOW], expected="more", resolution=0.0).verdict == "not measured"


@pytest.mark.parametrize(
    ("verdicts", "phrase"),
    [
        (["shown", "shown"], "Shows the claim"),
        (["shown", "not shown", "the opposite"], "Shows 1 of 3 parts of the claim"),
        (["not shown", "not shown"], "Does not show the claim"),
        (["not shown", "the opposite"], "Does not show the claim"),
        (["the opposite", "the opposite"], "Shows the opposite"),
        (["not measured", "too few seeds"], "Not decided yet"),
        (["shown", "not measured"], "Shows the claim, as far as it has been measured"),
    ],
)
def test_one_phrase_sums_up_an_experiment(verdicts: list[str], phrase: str):
    assert summary(verdicts) == phrase


def test_spread_is_mean_and_range():
    assert spread([0.25, 0.5, 1.0], 2) == "0.58 (0.25 to 1.00)"
    assert spread([0.25], 2) == "0.25"
    assert spread([], 2) == "–"
