"""Each schedule against known points of its curve."""

import math

import pytest

from trainer.optimization.lr_schedules import LR_SCHEDULES, check, ignores_total_steps, multiplier
from trainer.settings.config import OptimizerConfig


def curve(name: str, steps: int, **options: int) -> list[float]:
    config = OptimizerConfig(lr_schedule=name, **options)
    return [multiplier(config, step, steps) for step in range(steps)]


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_warm_up_rises_linearly_to_the_full_rate(name):
    rates = curve(name, 100, warmup_steps=9)
    assert rates[:10] == pytest.approx([n / 10 for n in range(1, 11)])


def test_constant_stays_at_one():
    assert curve("constant", 7) == [1.0] * 7


def test_linear_falls_linearly():
    assert curve("linear", 4) == pytest.approx([1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_cosine_follows_the_cosine(warmup_steps):
    expected = [0.5 * (1 + math.cos(math.pi * n / 10)) for n in range(10)]
    rates = curve("cosine", 10 + warmup_steps, warmup_steps=warmup_steps)
    assert rates[warmup_steps:] == pytest.approx(expected)


def test_each_restart_begins_at_the_full_rate():
    rates = curve("cosine with restarts", 30, num_restarts=3)
    assert [rates[0], rates[10], rates[20]] == pytest.approx([1, 1, 1])
    assert rates[:10] == pytest.approx(rates[10:20])
    assert rates[9] < 0.05


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_ignores_total_steps_is_true_where_the_curve_does(name):
    same = curve(name, 10, warmup_steps=2) == curve(name, 20, warmup_steps=2)[:10]
    assert ignores_total_steps(OptimizerConfig(lr_schedule=name)) == same
    assert not ignores_total_steps(OptimizerConfig(lr_schedule=name, anchor=1.0))


def test_refuses_an_unknown_schedule():
    with pytest.raises(ValueError) as caught:
        check(OptimizerConfig(lr_schedule="sine"), 100)
    assert str(caught.value) == (
        "optimizer.lr_schedule must be one of constant, linear, cosine, cosine with restarts, "
        "got 'sine'."
    )


def test_refuses_a_warm_up_as_long_as_the_run():
    with pytest.raises(ValueError) as caught:
        check(OptimizerConfig(warmup_steps=10), 10)
    assert str(caught.value) == (
        "optimizer.warmup_steps is 10, but the run has only 10 steps, so the full learning rate "
        "would never be reached. Lower it or raise steps."
    )
