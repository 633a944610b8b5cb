from __future__ import annotations

import pytest

from benchmarks.article.experiments import EXPERIMENTS, MEASURES
from benchmarks.article.tasks import tasks

SEEDS = (0, 1, 2)


@pytest.mark.parametrize("letters", ["a", "hi", "achedbfgi"])
def test_every_point_is_measured_once_with_every_seed(letters: str):
    found = tasks(letters, SEEDS, set(), is_quick=False)
    keys = [point.key(task.seed) for task in found for point in task.points]
    wanted = {
        point.key(seed)
        for letter in letters
        for point in EXPERIMENTS[letter].points.values()
        for seed in SEEDS
    }
    assert len(keys) == len(set(keys))
    assert set(keys) == wanted


def test_existing_measurements_are_left_out():
    first, *others = tasks("c", SEEDS, set(), is_quick=False)
    done = {point.key(first.seed) for point in first.points}
    assert tasks("c", SEEDS, done, is_quick=False) == others


def test_one_run_gives_all_its_checkpoints_and_experiments_share_runs():
    found = tasks("achedbfgi", SEEDS, set(), is_quick=False)
    rates = [task for task in found if task.run.of == 0 and len(task.points) == 4]
    assert len(rates) == 4 * len(SEEDS)
    runs = {(task.run, task.seed) for task in found}
    models = {point.recipe for task in found for point in task.points}
    assert len(runs) < len(models) * len(SEEDS) / 1.5


@pytest.mark.parametrize("letter", EXPERIMENTS)
def test_comparisons_are_between_measured_points(letter: str):
    experiment = EXPERIMENTS[letter]
    for comparison in experiment.comparisons:
        assert comparison.measure in experiment.measures
        for point in [*comparison.more, *comparison.less]:
            assert point in experiment.points.values()
    assert set(experiment.measures) <= set(MEASURES)
