import errno
import os

import pytest

from trainer.storage.flush import flush_folder, make_folder


@pytest.fixture
def synced(monkeypatch) -> list[int]:
    """The inodes of what is synced."""
    found: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: found.append(os.fstat(descriptor).st_ino))
    return found


@pytest.mark.posix
def test_the_folder_itself_is_synced(tmp_path, synced):
    flush_folder(tmp_path)
    assert synced == [tmp_path.stat().st_ino]


def test_a_folder_that_cannot_be_synced_raises_nothing(tmp_path, caplog):
    flush_folder(tmp_path / "missing")
    assert caplog.messages == []


@pytest.mark.posix
def test_a_disk_that_fails_is_a_warning(tmp_path, monkeypatch, caplog):
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "it broke")

    monkeypatch.setattr(os, "fsync", fail)
    flush_folder(tmp_path)
    assert caplog.messages == [
        f"What was last saved in '{tmp_path}' may be lost if the power fails now, because the disk "
        "could not write the folder: it broke"
    ]


@pytest.mark.posix
def test_the_names_of_new_folders_are_synced(tmp_path, synced):
    make_folder(tmp_path / "runs" / "states")
    assert (tmp_path / "runs" / "states").is_dir()
    assert set(synced) == {tmp_path.stat().st_ino, (tmp_path / "runs").stat().st_ino}


def test_a_folder_that_exists_is_not_synced_again(tmp_path, synced):
    make_folder(tmp_path)
    assert synced == []
