"""When a loss is an alarm, and that it is sounded once."""

import random

import numpy as np
import pytest

from trainer.alarms import EXPLOSION, WINDOW, warn_of_explosion
from trainer.observer import StepReport


def reports(losses):
    return [
        StepReport(
            step=step, total_steps=1000, loss=loss, instance_loss=loss, prior_loss=None,
            learning_rates={}, grad_norm=1.0, steps_per_second=1.0, seconds_left=0.0,
            peak_megabytes=1.0,
        )
        for step, loss in enumerate(losses, start=1)
    ]  # fmt: skip


def alarms(losses, caplog):
    """The steps at which a run of these losses warns."""
    found = []
    for length in range(1, len(losses) + 1):
        caplog.clear()
        warn_of_explosion(reports(losses[:length]), 1e-5)
        found += [length] * len(caplog.messages)
    return found


def test_an_explosion_is_told_once(caplog):
    rng = random.Random(0)
    calm = [rng.uniform(0.03, 0.4) for _ in range(150)]
    assert alarms(calm, caplog) == []
    assert alarms([*calm, 30.0, 40.0, 50.0], caplog) == [151]
    # Quiet in between: the second stretch is told too.
    assert alarms([*calm, 30.0, *calm[:30], 30.0], caplog) == [151, 182]


def test_the_warning_says_what_to_change(caplog):
    losses = [0.1, 0.2] * 50
    warn_of_explosion(reports([*losses, 4.5]), 1e-5)
    median = np.median(losses[-WINDOW:])
    assert caplog.messages == [
        f"The loss of step 101 is 4.5, more than {EXPLOSION} times the median of the steps before "
        f"({median:.3g}). If it stays there the model is falling apart: lower "
        "optimizer.learning_rate (now 1e-05)."
    ]


@pytest.mark.parametrize("losses", [[], [0.1, 90.0], [0.1] * 20 + [0.99]])
def test_a_few_steps_or_a_large_one_are_no_alarm(losses, caplog):
    assert alarms(losses, caplog) == []
