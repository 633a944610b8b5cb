"""Folder locks: one process at a time, released when it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.storage.locks import is_locked, locked

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


@pytest.mark.posix
def test_a_lock_that_is_a_link_changes_no_other_file(tmp_path):
    (tmp_path / "thesis.txt").write_text("a thesis")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "thesis.txt")
    with locked(tmp_path / "run"):
        assert is_locked(tmp_path / "run")
    assert (tmp_path / "thesis.txt").read_text() == "a thesis"
    assert not (tmp_path / "run" / "lock").is_symlink()
