"""Runs beside one another: which are of one kind, and what is said of the others."""

import os
from pathlib import Path

import pytest

from trainer.runs.identity import Definition
from trainer.runs.shorter_runs import Siblings
from trainer.settings.config import DatasetConfig, OptimizerConfig, TrainingConfig
from trainer.storage import json_files


def config(steps: int, lr_schedule: str = "constant") -> TrainingConfig:
    dataset = DatasetConfig(photos=(Path("photos"),), prompt="a photo of sks dog")
    optimizer = OptimizerConfig(lr_schedule=lr_schedule)
    return TrainingConfig(base=Path("base"), dataset=dataset, optimizer=optimizer, steps=steps)


def siblings(runs: Path, steps: int, lr_schedule: str = "constant", **facts: object) -> Siblings:
    """Of a run that has its default for `buckets`, where that is among its facts."""
    definition = Definition({"steps": steps, "seed": 1, **facts}, frozenset({"buckets"}))
    return Siblings(runs, definition, config(steps, lr_schedule))


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
        json_files.write(tmp_path / name / "manifest.json", {"definition": definition})
    (tmp_path / "without definition").mkdir()
    (tmp_path / "without definition" / "manifest.json").write_text("{}")
    return tmp_path


def test_they_differ_in_the_number_of_steps_alone(runs):
    found = siblings(runs, 400)
    assert found.states() == [runs / "long" / "states", runs / "short" / "states"]
    assert found.steps(runs / "long" / "states" / "step.pt") == 900
    assert found.steps(runs / "same" / "states" / "step.pt") is None
    found.forget()
    assert found.states() == []


def test_rates_that_depend_on_the_number_of_steps_make_their_states_useless(runs, caplog):
    found = siblings(runs, 400, "cosine")
    assert found.states() == []
    found.warn_of_shorter()
    assert caplog.messages == [
        "The run of 100 steps with these same settings cannot be trained on, because cosine "
        "learning rates depend on how many steps there are (optimizer.lr_schedule). This one "
        "begins at step 1."
    ]


def test_a_shorter_one_that_left_no_state_is_told_of(runs, caplog):
    siblings(runs, 100).warn_of_shorter()
    assert caplog.messages == []
    siblings(runs, 400).warn_of_shorter()
    assert caplog.messages == [
        "The run of 100 steps with these same settings left no state to train on from "
        "(output.keep_state). This one begins at step 1."
    ]


def test_the_last_one_is_named_by_its_differences(runs, tmp_path):
    json_files.write(runs / "last" / "manifest.json", {"definition": {"steps": 5, "seed": 3}})
    assert siblings(runs, 400).nothing_to_resume() == (
        f"No run of these settings and images is in {runs}, so there is none to go on with. The "
        "last one there differs in: seed, steps. Set on_existing to reuse to begin one."
    )
    assert siblings(tmp_path / "none", 400).nothing_to_resume() == (
        f"No run of these settings and images is in {tmp_path / 'none'}, so there is none to go on "
        "with. Set on_existing to reuse to begin one."
    )


def test_a_run_is_found_by_its_definition_and_else_gets_a_folder_of_that_name(runs):
    assert siblings(runs, 400).own() == runs / "same"
    unknown = Definition({"steps": 400, "seed": 1, "ema": True}, frozenset())
    assert siblings(runs, 400, ema=True).own() == runs / unknown.identity


def test_settings_that_came_later_hide_neither_a_run_nor_its_siblings(runs):
    """At their defaults, which the old run had without saying so."""
    found = siblings(runs, 400, buckets=False)
    assert found.own() == runs / "same"
    assert found.states() == [runs / "long" / "states", runs / "short" / "states"]
    for other in ({"mirror": False}, {"buckets": False, "mirror": False}):
        found = siblings(runs, 400, **other)
        assert found.own() not in runs.iterdir()
        assert found.states() == []


def test_the_hash_of_the_sources_that_old_runs_have_does_not_count(runs):
    for number, steps in enumerate((300, 500)):
        definition = {"steps": steps, "seed": 4, "version of the trainer": f"{number:016x}"}
        json_files.write(runs / f"old {steps}" / "manifest.json", {"definition": definition})
    found = siblings(runs, 300, seed=4)
    assert found.own() == runs / "old 300"
    assert found.states() == [runs / "old 500" / "states"]


def test_of_several_runs_of_one_definition_the_latest_version_and_a_finished_one_is_taken(runs):
    def write(name: str, **facts: object) -> None:
        definition = {"steps": 7, "version of the trainer": name, "seed": 1}
        json_files.write(runs / name / "manifest.json", {"definition": definition, **facts})

    def own() -> str:
        return siblings(runs, 7).own().name

    write("c", status="unfinished")
    write("b", status="finished")
    assert own() == "b"
    for name, when in {"b": 1000, "a": 2000}.items():
        write(name, status="finished")
        os.utime(runs / name / "manifest.json", (when, when))
    assert own() == "a"
    write("d", status="unfinished", numerics=1)
    assert own() == "d"
