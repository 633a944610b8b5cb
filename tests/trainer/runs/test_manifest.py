"""The manifest of a run, as it is written and read."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from trainer.runs.identity import Definition
from trainer.runs.manifest import Manifest, definition_of, numerics_of, read_all
from trainer.runs.numerics import NUMERICS_VERSION
from trainer.settings.config import DatasetConfig, TrainingConfig

OLD = json.loads(Path(__file__).with_name("manifests_version_0.json").read_text("utf-8"))
"""Manifests of real runs from before the numerics versions."""
RESULT = {
    "steps": 3, "total_steps": 6, "files": {}, "best": {}, "saves": [], "moved": {},
    "is_scored": False,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "0123"
    folder.mkdir()
    return folder


def opened(folder: Path) -> Manifest:
    dataset = DatasetConfig(photos=(Path("me/photos"),), prompt="a photo of sks dog")
    config = TrainingConfig(base=Path("me/base.safetensors"), dataset=dataset, steps=6)
    manifest = Manifest(folder, config, Definition({"steps": 6}, frozenset()))
    manifest.open()
    return manifest


def content(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def test_a_new_manifest_has_the_keys_of_the_old_ones_and_a_version(folder):
    opened(folder)
    made = content(folder)
    for old in OLD.values():
        assert made.keys() - old.keys() == {"numerics"}
        assert old.keys() - made.keys() <= {"result"}
    assert (made["identity"], made["status"], made["definition"]) == (
        "0123", "unfinished", {"steps": 6},
    )  # fmt: skip
    assert (made["config"]["base"], made["intermediate"]) == ("base.safetensors", [])


def test_an_existing_manifest_is_read_and_a_damaged_one_replaced(folder):
    first = opened(folder)
    first.note_numerics(0)
    again = opened(folder)
    assert (again.started, again.numerics) == (first.started, 0)
    (folder / "manifest.json").write_text("{")
    assert opened(folder).numerics == NUMERICS_VERSION
    assert content(folder)["status"] == "unfinished"


def test_a_result_is_kept_until_the_run_is_reopened_or_restarted(folder):
    manifest = opened(folder)
    assert manifest.result is None
    for reset in (Manifest.reopen, Manifest.restart):
        manifest.finish(RESULT, keeps_state=False)
        assert opened(folder).result == RESULT
        reset(manifest)
        assert opened(folder).result is None


def test_only_a_restart_changes_when_the_run_was_started(folder):
    opened(folder)
    path = folder / "manifest.json"
    path.write_text(json.dumps({**content(folder), "started": "2020-01-02T03:04:05+00:00"}))
    manifest, started = opened(folder), datetime.fromisoformat("2020-01-02T03:04:05+00:00")
    manifest.finish(RESULT, keeps_state=False)
    manifest.reopen()
    assert manifest.started == started
    manifest.restart()
    assert manifest.started > started


def test_intermediate_checkpoints_are_kept_in_order_if_they_exist(folder):
    paths = [folder / name for name in ("b.safetensors", "missing.safetensors", "a.safetensors")]
    for path in (paths[0], paths[2]):
        path.touch()
    opened(folder).note_intermediate(paths)
    assert opened(folder).intermediate == [paths[0], paths[2]]


def test_all_manifests_of_a_folder_are_read(folder):
    opened(folder)
    (folder.parent / "damaged").mkdir()
    (folder.parent / "damaged" / "manifest.json").write_text("{")
    (folder.parent / "hashes.json").write_text("{}")
    found = dict(read_all(folder.parent))
    assert found == {folder: content(folder), folder.parent / "damaged": {}}
    assert (definition_of(found[folder]), numerics_of(found[folder])) == (
        {"steps": 6}, NUMERICS_VERSION,
    )  # fmt: skip
    assert (definition_of({}), numerics_of({})) == ({}, 0)
