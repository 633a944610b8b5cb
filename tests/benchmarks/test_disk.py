"""What a power cut leaves, by the model of `benchmarks/faults/disk.py`."""

import os
import random
from pathlib import Path

import pytest

from benchmarks.faults.disk import KINDS, Bytes, Kind, Names, Recording
from benchmarks.faults.preload import Operation, without_process

pytestmark = pytest.mark.posix

ROOT = Path("/out")
WRITES = os.O_CREAT | os.O_TRUNC
SAFE = [
    ("open", 3, 0, 3, "", ""),
    ("create", 4, WRITES, 4, "a.part", ""),
    ("write", 4, 0, 6, "a.part", ""),
    ("fsync", 4, 0, 0, "a.part", ""),
    ("rename", -1, 0, 0, "a.part", "a.pt"),
    ("fsync", 3, 0, 0, "", ""),
]
"""A file is written safely: call, descriptor, offset or flags, result, path, second path."""


@pytest.fixture
def record(tmp_path):
    """Makes the record of operations on a folder that holds a file "old"."""

    def make(lines, data=b"abcdef"):
        (tmp_path / "before").mkdir()
        (tmp_path / "before" / "old").write_bytes(b"old")
        (tmp_path / "data").write_bytes(data)
        operations = [
            Operation(n, call, file, where, result, path_of(path), path_of(other) if other else "")
            for n, (call, file, where, result, path, other) in enumerate(lines, start=1)
        ]
        return Recording(ROOT, tmp_path / "before", operations, tmp_path / "data")

    return make


def path_of(name):
    return str(ROOT / name) if name else str(ROOT)


def left(recording, cut, names, content):
    """The files that are left, by name."""
    state = recording.state(cut, Kind("", names, content), random.Random(0))
    return {Path(path).name: data for path, data in state.items() if data is not None}


def test_what_was_never_synced_may_be_missing(record):
    recording = record(SAFE)
    assert left(recording, 3, Names.NONE, Bytes.NONE) == {"old": b"old"}
    assert left(recording, 3, Names.ALL, Bytes.NONE) == {"old": b"old", "a.part": b""}
    assert left(recording, 3, Names.ALL, Bytes.ZEROS) == {"old": b"old", "a.part": bytes(6)}
    assert left(recording, 3, Names.ALL, Bytes.ALL) == {"old": b"old", "a.part": b"abcdef"}


def test_synced_bytes_stay_and_a_name_stays_once_its_folder_is_synced(record):
    recording = record(SAFE)
    assert left(recording, 5, Names.NONE, Bytes.NONE) == {"old": b"old"}
    assert left(recording, 5, Names.ALL, Bytes.NONE) == {"old": b"old", "a.pt": b"abcdef"}
    assert left(recording, 6, Names.NONE, Bytes.NONE) == {"old": b"old", "a.pt": b"abcdef"}


def test_a_file_counts_as_saved_once_its_name_is_synced(record):
    recording = record(SAFE)
    assert [recording.saved(cut) for cut in (4, 5, 6)] == [set(), set(), {path_of("a.pt")}]
    assert recording.whole(path_of("a.pt")) == b"abcdef"


def test_a_deleted_file_may_be_back(record):
    recording = record([*SAFE, ("unlink", -1, 0, 0, "old", "")])
    assert "old" in left(recording, 7, Names.NONE, Bytes.NONE)
    assert "old" not in left(recording, 7, Names.ALL, Bytes.NONE)


def test_a_folder_whose_name_was_not_synced_takes_its_files_along(record):
    lines = [
        ("mkdir", -1, 0, 0, "new", ""),
        ("create", 4, WRITES, 4, "new/a.pt", ""),
        ("write", 4, 0, 6, "new/a.pt", ""),
        ("fsync", 4, 0, 0, "new/a.pt", ""),
        ("open", 5, 0, 5, "new", ""),
        ("fsync", 5, 0, 0, "new", ""),
    ]
    recording = record(lines)
    assert left(recording, 6, Names.NONE, Bytes.ALL) == {"old": b"old"}
    assert recording.saved(6) == {path_of("new/a.pt")}


def test_an_overwritten_file_may_be_torn(record):
    lines = [("create", 4, WRITES, 4, "old", ""), ("write", 4, 0, 2000, "old", "")]
    recording = record(lines, bytes(range(250)) * 8)
    kind = Kind("", Names.ALL, Bytes.FIRST)
    seen = {recording.state(2, kind, random.Random(n))[path_of("old")] for n in range(30)}
    assert {len(content) for content in seen} == {0, 3, 512, 1024, 1536}
    assert b"old" in seen  # not even its old content was deleted


def test_operations_that_failed_change_nothing(record):
    recording = record([("unlink", -1, 0, -1, "old", ""), ("mkdir", -1, 0, -1, "new", "")])
    assert left(recording, 2, Names.ALL, Bytes.ALL) == {"old": b"old"}


def test_every_kind_of_state_is_another(record):
    assert len({(kind.names, kind.bytes) for kind in KINDS}) == len(KINDS)


def test_process_numbers_are_left_out_of_names():
    assert without_process("/out/.a.json.123.part") == "/out/.a.json.PID.part"
