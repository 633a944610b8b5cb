"""Manifests that others wrote: whatever is in them, they are used or treated as missing."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.runs.manifest import read, read_all
from trainer.runs.manifest_check import fault
from trainer.runs.run_list import entries, table

WHOLE = {
    "identity": "0123", "status": "finished", "started": "2026-01-02T03:04:05+00:00",
    "config": {"steps": 2, "output": {"name": "cup"}}, "definition": {"steps": 2, "seed": 1},
    "numerics": 3, "versions": {"torch": "2.9"}, "intermediate": ["a.safetensors"],
    "result": {
        "steps": 2, "total_steps": 2, "files": {"checkpoint": {"path": "a", "sha256": "0"}},
        "best": {"checkpoint": "b"}, "saves": [{"checkpoint": "c"}], "moved": {"unet": [0.1, 1]},
        "is_scored": False,
    },
}  # fmt: skip
OTHERS = [
    None, [], {}, "x", -1, 0.5, 10**400, float("nan"), True, [[]], [None], {"a": 1}, "\0",
    "x" * 5000, "../../etc/passwd",
]  # fmt: skip


def changed(value: Any) -> list[tuple[str, Any]]:
    """The value with each of its parts replaced by each of `OTHERS`, or left out; by the name of
    the part."""
    if not isinstance(value, dict | list):
        return []
    found = []
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        smaller = value.copy()
        del smaller[key]
        parts = [(str(key), other) for other in OTHERS]
        parts += [(f"{key}.{name}", part) for name, part in changed(value[key])]
        found.append((str(key), smaller))
        for name, part in parts:
            other = value.copy()
            other[key] = part
            found.append((name, other))
    return found


def write(folder: Path, content: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(content), "utf-8")


def test_what_the_program_writes_is_valid():
    assert fault(WHOLE, whole=True) == ""
    unfinished = {**WHOLE, "status": "unfinished", "result": None}
    assert fault(unfinished, whole=True) == ""
    del unfinished["numerics"]  # older versions did not write it
    assert fault(unfinished, whole=True) == ""


def test_hundreds_of_manifests_are_listed_or_treated_as_damaged(tmp_path):
    found = changed(WHOLE)
    assert len(found) > 300
    for number, (_, content) in enumerate(found):
        write(tmp_path / f"{number:04d}", content)
    listed = entries(tmp_path)
    assert len(listed) == len(found)
    assert len(table(listed).splitlines()) >= len(found)
    statuses = {entry.folder.name: entry.status for entry in listed}
    damaged = {
        name.split(".")[0]
        for number, (name, _) in enumerate(found)
        if statuses[f"{number:04d}"] == "manifest missing or damaged"
    }
    assert damaged == WHOLE.keys() - {"versions"}, "nothing reads the versions"


@pytest.mark.parametrize("key", ["status", "definition", "result", "numerics"])
def test_a_wrong_key_is_named(tmp_path, caplog, key):
    write(tmp_path / "run", {**WHOLE, key: "x"})
    assert read(tmp_path / "run") == {}
    path = tmp_path / "run" / "manifest.json"
    assert caplog.messages == [f"'{path}' has no valid {key}. It is treated as missing."]


def test_a_finished_run_has_a_result():
    assert fault({**WHOLE, "result": None}, whole=True) == "result"
    assert fault({"status": "finished"}, whole=False) == ""


def test_a_deep_manifest_is_treated_as_missing(tmp_path, caplog):
    write(tmp_path / "run", {})
    (tmp_path / "run" / "manifest.json").write_text("[" * 100_000)
    assert list(read_all(tmp_path)) == [(tmp_path / "run", {})]
    assert "maximum recursion depth exceeded" in caplog.text
