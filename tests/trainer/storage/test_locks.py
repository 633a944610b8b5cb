"""Folder locks: one process at a time, released when it ends."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from trainer.storage.locks import (
    delete_abandoned,
    delete_abandoned_folder,
    held,
    is_locked,
    locked,
    own_folder,
)

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from trainer.storage.locks import locked
with locked(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


def test_a_second_lock_is_refused_and_names_the_holder(tmp_path):
    with locked(tmp_path):
        with pytest.raises(RuntimeError) as caught, locked(tmp_path):
            pass
        assert str(caught.value) == (
            f"Process {os.getpid()} is already working on this run in {tmp_path}. "
            "Wait until it finishes, or stop it."
        )
    with locked(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_released(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"in\n"
        with pytest.raises(RuntimeError, match=f"^Process {process.pid} "), locked(tmp_path):
            pass
        process.kill()
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_is_locked_changes_nothing(tmp_path):
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    with locked(tmp_path):  # is_locked itself holds no lock
        pass


def test_only_files_that_no_process_holds_are_deleted(tmp_path):
    path, other = tmp_path / "a.part", tmp_path / "b.part"
    with held(path), path.open("wb") as file:
        other.touch()
        for each in (path, other, tmp_path / "missing.part"):
            delete_abandoned(each)
        assert (path.exists(), other.exists()) == (True, False)
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    delete_abandoned(path)
    assert not path.exists()


@pytest.mark.posix
def test_a_file_that_was_deleted_just_before_it_was_held_is_created_again(tmp_path, monkeypatch):
    import fcntl

    path, lock = tmp_path / "a.part", fcntl.flock

    def delete_once(file, operation):
        monkeypatch.setattr(fcntl, "flock", lock)
        path.unlink()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", delete_once)
    with held(path):
        assert path.exists()


def test_own_folders_are_deleted_at_the_end_and_after_a_kill(tmp_path):
    own, left, foreign = (tmp_path / name for name in ("own", "left", "foreign"))
    for folder in (left, foreign):
        folder.mkdir()
    for path in (left / "lock", left / "whole"):
        path.touch()
    with own_folder(own):
        (own / "whole").touch()
        for folder in tmp_path.iterdir():
            delete_abandoned_folder(folder)
        assert sorted(tmp_path.iterdir()) == [foreign, own]  # foreign has no lock
        assert (own / "whole").exists()
    assert list(tmp_path.iterdir()) == [foreign]


@pytest.mark.posix
def test_an_own_folder_that_is_being_deleted_as_abandoned_is_created_again(tmp_path, monkeypatch):
    """Another process finds it before it is locked."""
    import fcntl

    own, lock = tmp_path / "own", fcntl.flock

    def delete_once(file, operation):
        monkeypatch.setattr(fcntl, "flock", lock)
        delete_abandoned_folder(own)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", delete_once)
    with own_folder(own):
        assert (own / "lock").exists()


def test_an_own_folder_waits_while_another_process_deletes_it(tmp_path, monkeypatch):
    own, refused = tmp_path / "own", []

    def locked_later(folder):
        if not refused:
            refused.append(folder)
            raise RuntimeError("locked by another process")
        return locked(folder)

    monkeypatch.setattr("trainer.storage.locks.locked", locked_later)
    with own_folder(own):
        assert refused == [own]
        assert (own / "lock").exists()


@pytest.mark.posix
def test_the_lock_of_an_own_folder_is_deleted_last(tmp_path, monkeypatch):
    """Otherwise a kill in between would leave a folder that is never deleted."""
    own, deleted = tmp_path / "own", []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path: (deleted.append(path.name), unlink(path)))
    with own_folder(own):
        for name in ("a", "z"):
            (own / name).touch()
        rmtree = shutil.rmtree

        def rest(folder, **options):
            deleted.append([path.name for path in folder.iterdir()])
            monkeypatch.setattr(shutil, "rmtree", rmtree)
            rmtree(folder, **options)

        monkeypatch.setattr(shutil, "rmtree", rest)
    assert sorted(deleted[:2]) == ["a", "z"]
    assert deleted[2] == ["lock"]


@pytest.mark.posix
def test_a_full_disk_does_not_matter_to_a_lock(small_disk):
    disk = small_disk(1 << 16)
    with suppress(OSError), (disk / "large").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))
    with locked(disk):
        assert is_locked(disk)


@pytest.mark.posix
def test_a_lock_that_is_a_link_changes_no_other_file(tmp_path):
    (tmp_path / "thesis.txt").write_text("a thesis")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "thesis.txt")
    with locked(tmp_path / "run"):
        assert is_locked(tmp_path / "run")
    assert (tmp_path / "thesis.txt").read_text() == "a thesis"
    assert not (tmp_path / "run" / "lock").is_symlink()
