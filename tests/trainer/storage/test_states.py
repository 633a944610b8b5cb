"""Training states: saving, loading, retention, and damaged files."""

import errno
import hashlib
import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from trainer.storage import states


def state(step: int) -> dict[str, object]:
    weights = torch.randn(1000, generator=torch.Generator().manual_seed(step))
    return {"step": step, "weights": [weights], "groups": ({"betas": (0.9, 0.99), "d": None},)}


def newest(*folders: Path, up_to: int = 1000, mmap: bool = False) -> dict[str, object] | None:
    found = states.load_newest(folders, up_to=up_to, mmap=mmap)
    return found[1] if found else None


def test_the_newest_state_is_read_back_and_two_are_kept(tmp_path):
    assert newest(tmp_path / "none") is None
    for step in (9, 10, 100):
        states.save(tmp_path, step, state(step))
    assert sorted(path.name[:10] for path in tmp_path.iterdir()) == ["step000010", "step000100"]
    for mmap in (False, True):
        loaded = newest(tmp_path, mmap=mmap)
        assert torch.equal(loaded["weights"][0], state(100)["weights"][0])
        assert loaded["groups"] == state(100)["groups"]


@pytest.mark.parametrize("damage", ["one bit", "cut short", "empty"])
def test_a_damaged_state_is_renamed_and_the_older_one_used(tmp_path, caplog, damage):
    states.save(tmp_path, 10, state(10))
    path = states.save(tmp_path, 20, state(20))
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[random.Random(0).randrange(len(content))] ^= 1
    path.write_bytes({"one bit": content, "cut short": content[:-1], "empty": b""}[damage])
    assert newest(tmp_path)["step"] == 10
    aside = path.with_suffix(".damaged")
    assert caplog.messages == [
        f"The state '{path}' is damaged and cannot be used. It was renamed to '{aside.name}'."
    ]
    assert aside.exists()
    assert newest(tmp_path)["step"] == 10


@pytest.mark.posix
def test_a_write_on_a_full_disk_reports_the_cause_and_keeps_older_states(tmp_path, file_size_limit):
    for step in (10, 20):
        states.save(tmp_path, step, state(step))
    before = sorted(tmp_path.iterdir())
    with file_size_limit(3000), pytest.raises(OSError, match="File too large"):
        states.save(tmp_path, 30, state(30))
    assert sorted(tmp_path.iterdir()) == before
    assert newest(tmp_path)["step"] == 20


def test_the_remains_of_a_killed_write_are_overwritten(tmp_path):
    states.save(tmp_path, 10, state(10))
    (tmp_path / ".state.part").write_bytes(b"half")
    assert newest(tmp_path)["step"] == 10
    states.save(tmp_path, 20, state(20))
    assert not list(tmp_path.glob(".*"))


def test_loading_never_runs_code(tmp_path):
    """Even if the checksum in the name is right."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    states.save(tmp_path, 1, {"evil": Evil()})
    with pytest.raises(ValueError, match="so it is not opened"):
        newest(tmp_path)
    assert not (tmp_path / "evil").exists()


def test_the_newest_state_of_several_folders_up_to_a_step_is_loaded(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, step in [(one, 10), (one, 30), (other, 20), (other, 40)]:
        states.save(folder, step, state(step))
    assert not states.exist([one, other], up_to=9)
    assert newest(one, other, up_to=9) is None
    for up_to, expected in [(10, 10), (29, 20), (39, 30), (99, 40)]:
        assert states.exist([one, other], up_to=up_to)
        path, found = states.load_newest([one, other], up_to=up_to, mmap=False)
        assert found["step"] == expected
        assert path.parent == (one if expected in (10, 30) else other)
    for path in other.iterdir():
        path.write_bytes(b"damaged")
    assert newest(one, other)["step"] == 30


def test_file_times_do_not_matter(tmp_path):
    """The clock may have been set back between two states."""
    for step in (10, 20):
        path = states.save(tmp_path, step, state(step))
        os.utime(path, (2_000_000_000 - step, 2_000_000_000 - step))
    assert newest(tmp_path)["step"] == 20


@pytest.mark.parametrize("keep", [0, 1])
def test_remove_deletes_only_states(tmp_path, keep):
    states.save(tmp_path, 1, state(1))
    kept = states.save(tmp_path, 2, state(2))
    others = ["notes.txt", "step000001-0123456789abcdef.damaged"]
    for name in (".state.part", *others):
        (tmp_path / name).touch()
    states.remove(tmp_path, keep=keep)
    assert {path.name for path in tmp_path.iterdir()} == {*others, *[kept.name] * keep}


def test_a_state_is_synced_to_disk_before_it_is_renamed(tmp_path, disk_events, safely_written):
    path = states.save(tmp_path, 1, state(1))
    assert disk_events == safely_written(path)


def test_a_state_that_the_disk_cannot_read_is_named(tmp_path, monkeypatch):
    path = states.save(tmp_path, 1, {"step": 1})

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(OSError) as caught:
        states.load_newest([tmp_path], up_to=1, mmap=False)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))


@pytest.mark.parametrize("content", ["code", "a list", "no archive"])
def test_a_state_that_others_wrote_is_refused(tmp_path, content):
    """With the checksum of its content in its name, as an attacker would name it."""
    made = {
        "code": pickle.dumps({"parameters": os.getcwd}),
        "a list": pickle.dumps([1, 2], protocol=2),
        "no archive": b"weights",
    }[content]
    path = tmp_path / f"step000007-{hashlib.sha256(made).hexdigest()[:16]}.pt"
    path.write_bytes(made)
    with pytest.raises(ValueError) as caught:
        newest(tmp_path)
    assert str(caught.value) == (
        f"The state '{path}' holds something else than the state of a run, so it is not opened. "
        "Delete it, then run the same again."
    )
    assert path.exists()


def test_all_states_are_removed_and_nothing_else(tmp_path):
    state_files = {f"step000001-{'0' * 16}{ending}" for ending in (".pt", ".damaged", ".unusable")}
    for name in (*state_files, ".state.part", "thesis.txt", "step1.pt", "step000001.png"):
        (tmp_path / name).touch()
    states.remove_all(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step000001.png", "step1.pt", "thesis.txt",
    ]  # fmt: skip
