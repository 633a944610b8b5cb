"""JSON files: atomic writes, and reading files that are missing or damaged."""

import logging
import os

import pytest

from trainer.storage import json_files


def test_an_object_is_read_back(tmp_path):
    path = tmp_path / "new" / "record.json"
    assert json_files.read(path) == {}
    json_files.write(path, {"name": "müde 개"})
    json_files.write(path, {"name": "개", "steps": 3})
    assert json_files.read(path) == {"name": "개", "steps": 3}
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]


def test_a_damaged_file_is_treated_as_missing_with_a_warning(tmp_path, caplog):
    path = tmp_path / "record.json"
    path.write_text('{"name": ')
    assert json_files.read(path) == {}
    (message,) = caplog.messages
    assert message.startswith(f"'{path}' cannot be read (")
    assert message.endswith("). It is treated as missing.")


@pytest.mark.posix
def test_a_write_on_a_full_disk_leaves_the_old_file(tmp_path, file_size_limit):
    path = tmp_path / "record.json"
    json_files.write(path, {"steps": 3})
    with file_size_limit(1000), pytest.raises(OSError, match="File too large"):
        json_files.write_text(path, "x" * 2000)
    assert json_files.read(path) == {"steps": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_temporary_files_of_killed_processes_are_deleted(tmp_path, monkeypatch):
    path = tmp_path / "a[1].json"
    left, others = tmp_path / ".a[1].json.4194304.part", tmp_path / ".b.json.4194304.part"
    for part in (left, others):
        part.write_text("half")
    with json_files.atomic_write(path) as file:
        file.write(b"{}")
        monkeypatch.setattr(os, "getpid", lambda: 1)  # another process, at the same time
        json_files.write_text(path, "[]")
    assert sorted(each.name for each in tmp_path.iterdir()) == [others.name, path.name]
    assert path.read_text() == "{}"


def test_warn_on_failure_logs_a_warning_instead_of_raising(caplog):
    caplog.set_level(logging.WARNING)
    with json_files.warn_on_failure("the previews of this step"):
        raise OSError("disk full")
    assert caplog.messages == ["Could not save the previews of this step: disk full"]


def test_a_file_is_synced_to_disk_before_it_is_renamed(tmp_path, disk_events, safely_written):
    path = tmp_path / "record.json"
    json_files.write(path, {"steps": 3})
    assert disk_events == safely_written(path)
