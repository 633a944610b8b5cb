"""Listing and deleting runs: what is shown, and what is kept."""

import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.__main__ import main
from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.observer import Observer
from trainer.runs import run_list
from trainer.runs.numerics import NUMERICS_VERSION
from trainer.settings.config import DatasetConfig, OptimizerConfig, OutputConfig, TrainingConfig
from trainer.storage import json_files
from trainer.storage.locks import locked


class Ending(Observer):
    """Stops or finishes a run after two steps."""

    def __init__(self, *, stops: bool) -> None:
        self.stops, self.step = stops, 0

    def on_step(self, report):
        self.step = report.step
        if self.stops and self.step == 2:
            raise KeyboardInterrupt

    def wants_to_finish(self):
        return self.step == 2


@pytest.fixture(scope="module")
def made(tiny_checkpoint, tmp_path_factory) -> Path:
    """A folder with three runs, "whole", "early" and "stopped". Tests must not change it."""
    folder = tmp_path_factory.mktemp("runs")
    pixels = np.random.default_rng(0).integers(0, 256, size=(16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")

    def run(name: str, steps: int, observer: Observer) -> None:
        config = TrainingConfig(
            base=tiny_checkpoint,
            dataset=DatasetConfig(photos=(folder / "photo.png",), prompt="a photo of sks dog"),
            optimizer=OptimizerConfig(learning_rate=1e-3),
            output=OutputConfig(folder=folder, name=name, keep_state=name == "early", save_every=1),
            steps=steps,
            batch_size=1,
            seed=steps,  # otherwise one would resume from another's state
        )
        device = torch.device("cpu")
        train(config, FullFineTune(), device=device, observer=observer, runs=folder / "runs")

    run("whole", 1, Observer())
    run("early", 3, Ending(stops=False))
    with pytest.raises(KeyboardInterrupt):
        run("stopped", 4, Ending(stops=True))
    for day, name in enumerate(("whole", "early", "stopped"), start=1):
        path = by_name(folder / "runs")[name].folder / "manifest.json"
        json_files.write(
            path, {**json_files.read(path), "started": f"2026-05-0{day}T12:00:00+00:00"}
        )
    return folder


@pytest.fixture
def runs(made, tmp_path) -> Path:
    return Path(shutil.copytree(made / "runs", tmp_path / "runs"))


def by_name(runs: Path) -> dict[str, run_list.Entry]:
    return {entry.name: entry for entry in run_list.entries(runs)}


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_runs_are_listed_with_their_files_and_sizes(made, runs, caplog):
    caplog.set_level(logging.INFO)
    moved = [made / "early-step000001.safetensors", made / "early.safetensors"]
    for path in moved:
        path.rename(path.with_suffix(".moved"))
    try:
        assert main(["runs", str(runs)]) == 0
    finally:
        for path in moved:
            path.with_suffix(".moved").rename(path)
    found = by_name(runs)
    size = lambda folder: sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())  # noqa: E731
    for entry in found.values():
        assert entry.size == size(entry.folder)
        assert entry.size_of_states == size(entry.folder / "states")
    shown = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "2026-01-02 03:04", caplog.messages[0])
    early, stopped = (f"{found[name].size / 1e6:.1f} MB" for name in ("early", "stopped"))
    version = NUMERICS_VERSION
    ids = {name: entry.folder.name for name, entry in found.items()}
    assert re.sub(" +", " ", shown).splitlines() == [
        "ID name status started steps numerics size states",
        f"{ids['whole']} whole finished 2026-01-02 03:04 1 {version} 0.0 MB -",
        f" {made}/whole-step000001.safetensors",
        f" {made}/whole.safetensors",
        f"{ids['early']} early finished early, at step 2 of 3 2026-01-02 03:04 3 {version} {early} "
        f"{early}",
        f" {made}/early-step000002.safetensors",
        f" {made}/early.safetensors (missing)",
        f"{ids['stopped']} stopped stopped at step 2 of 4 2026-01-02 03:04 4 {version} {stopped} "
        f"{stopped}",
        f" {made}/stopped-step000001.safetensors",
    ]
    places = [line.index("2026") for line in shown.splitlines() if "2026" in line]
    assert len(set(places)) == 1
    both = found["early"].size_of_states + found["stopped"].size_of_states
    assert caplog.messages[1] == (
        f"Total size: {sum(entry.size for entry in found.values()) / 1e6:.1f} MB, of which states: "
        f"{both / 1e6:.1f} MB."
    )


def test_a_run_is_deleted_except_for_its_checkpoints(made, runs, caplog):
    caplog.set_level(logging.INFO)
    found = by_name(runs)
    stopped, early = found["stopped"], found["early"]
    (early.folder / "mine.safetensors").touch()
    before = contents(made)
    assert main(["runs", str(runs), "--delete", stopped.folder.name, early.folder.name]) == 0
    freed = (stopped.size + early.size) / 1e6
    assert caplog.messages == [f"Deleted 2 runs and freed {freed:.1f} MB."]
    assert contents(made) == before
    assert not stopped.folder.exists()
    assert contents(early.folder) == {"mine.safetensors"}
    assert [entry.name for entry in run_list.entries(runs)] == ["whole"]


def test_states_are_deleted_including_unusable_ones(runs, caplog):
    caplog.set_level(logging.INFO)
    stopped, early = by_name(runs)["stopped"], by_name(runs)["early"]
    (state,) = (early.folder / "states").iterdir()
    state.rename(state.with_suffix(".unusable"))
    assert main(["runs", str(runs), "--delete-states", early.folder.name]) == 0
    assert caplog.messages == [f"Deleted states and freed {early.size_of_states / 1e6:.1f} MB."]
    assert contents(early.folder) == {
        "lock", "manifest.json", "metrics.jsonl", "scores.jsonl", "settings.toml", "states",
    }  # fmt: skip
    left = by_name(runs)
    assert left["early"].size_of_states == 0
    assert left["stopped"].size_of_states == stopped.size_of_states
    assert run_list.delete_states(runs, ["all"]) == stopped.size_of_states
    assert by_name(runs)["stopped"].status == "stopped without a state"


def test_a_run_in_use_is_not_touched(runs, caplog):
    found = by_name(runs)
    stopped, early = found["stopped"], found["early"]
    with locked(stopped.folder):
        assert by_name(runs)["stopped"].status == "in use"
        for delete in ("--delete", "--delete-states"):
            ids = [early.folder.name, stopped.folder.name]
            caplog.clear()
            assert main(["runs", str(runs), delete, *ids]) == 1
            assert caplog.messages[-1].endswith(
                f"is already working on this run in {stopped.folder}. Wait until it finishes, or "
                "stop it."
            )
        assert by_name(runs)["early"].size == early.size
        caplog.clear()
        assert run_list.delete_states(runs, ["all"]) == early.size_of_states
        assert caplog.messages == [
            f"The run {stopped.folder.name} is in use, so its states are kept."
        ]
    assert by_name(runs)["stopped"].size_of_states == stopped.size_of_states


@pytest.mark.parametrize("delete", ["--delete", "--delete-states"])
def test_an_unknown_run_is_refused_and_nothing_deleted(runs, caplog, delete):
    before = {entry.name: entry.size for entry in run_list.entries(runs)}
    known = [entry.folder.name for entry in run_list.entries(runs)]
    assert main(["runs", str(runs), delete, known[0], "..", "0123"]) == 1
    assert caplog.messages == [
        f"There is no run .., 0123 in '{runs}', so nothing was deleted. Existing "
        f"runs: {', '.join(known)}."
    ]
    assert {entry.name: entry.size for entry in run_list.entries(runs)} == before


def test_no_runs_and_no_folder(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert main(["runs", str(tmp_path)]) == 0
    assert main(["runs", str(tmp_path / "none")]) == 1
    assert caplog.messages == [
        f"There are no runs in '{tmp_path}'.",
        f"The folder '{tmp_path / 'none'}' does not exist. Give the folder where runs are kept: "
        "'runs' in the output folder, unless --runs was used.",
    ]


def test_old_and_damaged_runs_are_listed_and_can_be_deleted(runs):
    whole, stopped = by_name(runs)["whole"], by_name(runs)["stopped"]
    manifest = json_files.read(whole.folder / "manifest.json")
    del manifest["numerics"]
    json_files.write(whole.folder / "manifest.json", manifest)
    (stopped.folder / "manifest.json").write_text("{")
    found = by_name(runs)
    assert found["whole"].numerics == 0
    assert (found["?"].folder, found["?"].status) == (
        stopped.folder, "manifest missing or damaged",
    )  # fmt: skip
    assert "?" in run_list.table(run_list.entries(runs))
    run_list.delete(runs, [stopped.folder.name])
    assert not stopped.folder.exists()


@pytest.mark.posix
@pytest.mark.parametrize("delete", ["--delete", "--delete-states"])
def test_states_that_are_a_link_delete_nothing_elsewhere(runs, tmp_path, delete):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("a thesis")
    folder = by_name(runs)["stopped"].folder
    shutil.rmtree(folder / "states")
    (folder / "states").symlink_to(elsewhere)
    assert main(["runs", str(runs), delete, folder.name]) == 0
    assert (elsewhere / "thesis.txt").read_text() == "a thesis"
