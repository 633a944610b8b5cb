import os

import pytest

from trainer.storage.flush import flush_folder


@pytest.mark.posix
def test_the_folder_itself_is_synced(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    flush_folder(tmp_path)
    assert synced == [tmp_path.stat().st_ino]


def test_a_folder_that_cannot_be_synced_raises_nothing(tmp_path):
    flush_folder(tmp_path / "missing")
