"""Runs beside one another: which are of one kind, and what is said of the others."""

from pathlib import Path

import pytest

from trainer import records
from trainer.config import DatasetConfig, OptimizerConfig, TrainingConfig
from trainer.siblings import Siblings, differences_to_last


def config(steps: int, lr_schedule: str = "constant") -> TrainingConfig:
    dataset = DatasetConfig(photos=(Path("photos"),), prompt="a photo of sks dog")
    optimizer = OptimizerConfig(lr_schedule=lr_schedule)
    return TrainingConfig(base=Path("base"), dataset=dataset, optimizer=optimizer, steps=steps)


@pytest.fixture
def runs(tmp_path) -> Path:
    definitions = {
        "short": {"steps": 100, "seed": 1},
        "long": {"steps": 900, "seed": 1},
        "other seed": {"steps": 100, "seed": 2},
        "same": {"steps": 400, "seed": 1},
        "newer": {"steps": 100, "seed": 1, "ema": True},
    }
    for name, definition in definitions.items():
        records.write(tmp_path / name / "manifest.json", {"definition": definition})
    (tmp_path / "without definition").mkdir()
    (tmp_path / "without definition" / "manifest.json").write_text("{}")
    return tmp_path


def test_they_differ_in_the_number_of_steps_alone(runs):
    siblings = Siblings(runs, {"steps": 400, "seed": 1}, config(400))
    assert siblings.states() == [runs / "long" / "states", runs / "short" / "states"]
    assert siblings.steps(runs / "long" / "states" / "step.pt") == 900
    assert siblings.steps(runs / "same" / "states" / "step.pt") is None
    siblings.forget()
    assert siblings.states() == []


def test_rates_that_depend_on_the_number_of_steps_make_their_states_useless(runs, caplog):
    siblings = Siblings(runs, {"steps": 400, "seed": 1}, config(400, "cosine"))
    assert siblings.states() == []
    siblings.warn_of_shorter()
    assert caplog.messages == [
        "The run of 100 steps with these same settings cannot be trained on, because cosine "
        "learning rates depend on how many steps there are (optimizer.lr_schedule). This one "
        "begins at step 1."
    ]


def test_a_shorter_one_that_left_no_state_is_told_of(runs, caplog):
    Siblings(runs, {"steps": 100, "seed": 1}, config(100)).warn_of_shorter()
    assert caplog.messages == []
    Siblings(runs, {"steps": 400, "seed": 1}, config(400)).warn_of_shorter()
    assert caplog.messages == [
        "The run of 100 steps with these same settings left no state to train on from "
        "(output.keep_state). This one begins at step 1."
    ]


def test_the_last_one_is_named_by_its_differences(runs, tmp_path):
    records.write(runs / "last" / "manifest.json", {"definition": {"steps": 5, "seed": 3}})
    assert differences_to_last(runs, {"steps": 400, "seed": 1}) == ["seed", "steps"]
    assert differences_to_last(tmp_path / "none", {"steps": 400}) == []
