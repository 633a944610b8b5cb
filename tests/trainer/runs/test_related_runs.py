"""Which states of other runs a run may continue, and what is reported about the rest."""

import os
from pathlib import Path

import pytest

from trainer.runs.identity import Definition
from trainer.runs.related_runs import RelatedRuns
from trainer.settings.config import DatasetConfig, OptimizerConfig, TrainingConfig
from trainer.storage import json_files


def config(steps: int, lr_schedule: str = "constant", anchor: float = 0.0) -> TrainingConfig:
    dataset = DatasetConfig(photos=(Path("photos"),), prompt="a photo of sks dog")
    optimizer = OptimizerConfig(lr_schedule=lr_schedule, anchor=anchor)
    return TrainingConfig(base=Path("base"), dataset=dataset, optimizer=optimizer, steps=steps)


def related(runs: Path, steps: int, lr_schedule: str = "constant", **facts: object) -> RelatedRuns:
    """The runs related to one with these facts, for which `buckets` is a default."""
    definition = Definition({"steps": steps, "seed": 1, **facts}, frozenset({"buckets"}))
    return RelatedRuns(runs, definition, config(steps, lr_schedule))


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


def test_states_of_runs_that_differ_only_in_steps_may_be_continued(runs):
    found = related(runs, 400)
    assert found.states() == [runs / "long" / "states", runs / "short" / "states"]
    assert found.steps_of(runs / "long" / "states" / "step.pt") == 900
    assert found.steps_of(runs / "same" / "states" / "step.pt") is None
    found.exclude_states()
    assert found.states() == []


def test_states_of_runs_that_only_write_in_another_form_may_be_continued(tmp_path):
    other = {"steps": 400, "seed": 1, "output.dtype": "fp16", "output.private": True}
    json_files.write(tmp_path / "other" / "manifest.json", {"definition": other})
    writing = {"output.dtype": "fp32", "output.private": False}
    state = tmp_path / "other" / "states"
    assert related(tmp_path, 400, "cosine", **writing).states() == [state]
    assert related(tmp_path, 500, **writing).states() == [state]
    assert related(tmp_path, 500, "cosine", **writing).states() == []
    assert related(tmp_path, 400, **writing, ema=True).states() == []


def test_states_are_not_continued_if_learning_rates_depend_on_the_number_of_steps(runs, caplog):
    found = related(runs, 400, "cosine")
    assert found.states() == []
    found.warn_of_shorter()
    assert caplog.messages == [
        "A run of 100 steps with the same settings exists, but it cannot be continued, because the "
        "cosine schedule depends on the number of steps (optimizer.lr_schedule). Training starts "
        "at step 1."
    ]


def test_states_are_not_continued_if_the_pull_depends_on_the_number_of_steps(runs, caplog):
    definition = Definition({"steps": 400, "seed": 1}, frozenset())
    found = RelatedRuns(runs, definition, config(400, anchor=2.0))
    assert found.states() == []
    found.warn_of_shorter()
    assert caplog.messages == [
        "A run of 100 steps with the same settings exists, but it cannot be continued, because the "
        "pull back to the base model depends on the number of steps (optimizer.anchor). Training "
        "starts at step 1."
    ]


def test_a_shorter_run_without_a_state_is_reported(runs, caplog):
    related(runs, 100).warn_of_shorter()
    assert caplog.messages == []
    related(runs, 400).warn_of_shorter()
    assert caplog.messages == [
        "A run of 100 steps with the same settings exists, but it kept no state to continue from "
        "(output.keep_state). Training starts at step 1."
    ]


def test_the_differences_of_the_most_recent_run_are_named(runs, tmp_path):
    json_files.write(runs / "last" / "manifest.json", {"definition": {"steps": 5, "seed": 3}})
    assert related(runs, 400).nothing_to_resume() == (
        f"There is nothing to resume: {runs} contains no run with these settings and images. The "
        "most recent run there differs in: seed, steps. Set on_existing to reuse to start a new "
        "run."
    )
    assert related(tmp_path / "none", 400).nothing_to_resume() == (
        f"There is nothing to resume: {tmp_path / 'none'} contains no run with these settings and "
        "images. Set on_existing to reuse to start a new run."
    )


def test_a_run_is_found_by_its_definition_or_gets_a_new_folder_named_after_it(runs):
    assert related(runs, 400).own_folder() == runs / "same"
    unknown = Definition({"steps": 400, "seed": 1, "ema": True}, frozenset())
    assert related(runs, 400, ema=True).own_folder() == runs / unknown.identity


def test_newer_settings_at_their_defaults_do_not_hide_older_runs(runs):
    found = related(runs, 400, buckets=False)
    assert found.own_folder() == runs / "same"
    assert found.states() == [runs / "long" / "states", runs / "short" / "states"]
    for other in ({"mirror": False}, {"buckets": False, "mirror": False}):
        found = related(runs, 400, **other)
        assert found.own_folder() not in runs.iterdir()
        assert found.states() == []


def test_the_source_hash_in_old_definitions_is_ignored(runs):
    for number, steps in enumerate((300, 500)):
        definition = {"steps": steps, "seed": 4, "version of the trainer": f"{number:016x}"}
        json_files.write(runs / f"old {steps}" / "manifest.json", {"definition": definition})
    found = related(runs, 300, seed=4)
    assert found.own_folder() == runs / "old 300"
    assert found.states() == [runs / "old 500" / "states"]


def test_of_equal_runs_the_newest_version_then_a_finished_then_the_last_written_one_wins(runs):
    def write(name: str, **facts: object) -> None:
        definition = {"steps": 7, "version of the trainer": name, "seed": 1}
        json_files.write(runs / name / "manifest.json", {"definition": definition, **facts})

    def own() -> str:
        return related(runs, 7).own_folder().name

    write("c", status="unfinished")
    write("b", status="finished")
    assert own() == "b"
    for name, when in {"b": 1000, "a": 2000}.items():
        write(name, status="finished")
        os.utime(runs / name / "manifest.json", (when, when))
    assert own() == "a"
    write("d", status="unfinished", numerics=1)
    assert own() == "d"
