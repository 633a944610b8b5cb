"""States: what comes back, what stays, and what is done about damage."""

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


def test_the_newest_comes_back_as_it_was_and_two_stay(tmp_path):
    assert newest(tmp_path / "none") is None
    for step in (9, 10, 100):
        states.save(tmp_path, step, state(step))
    assert sorted(path.name[:10] for path in tmp_path.iterdir()) == ["step000010", "step000100"]
    for mmap in (False, True):
        loaded = newest(tmp_path, mmap=mmap)
        assert torch.equal(loaded["weights"][0], state(100)["weights"][0])
        assert loaded["groups"] == state(100)["groups"]


@pytest.mark.parametrize("damage", ["one bit", "cut short", "empty"])
def test_a_damaged_one_is_named_and_put_aside_and_the_older_one_used(tmp_path, caplog, damage):
    states.save(tmp_path, 10, state(10))
    path = states.save(tmp_path, 20, state(20))
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[random.Random(0).randrange(len(content))] ^= 1
    path.write_bytes({"one bit": content, "cut short": content[:-1], "empty": b""}[damage])
    assert newest(tmp_path)["step"] == 10
    aside = path.with_suffix(".damaged")
    assert caplog.messages == [
        f"The state '{path}' is damaged. It is not used, and kept as '{aside.name}'."
    ]
    assert aside.exists()
    assert newest(tmp_path)["step"] == 10


@pytest.mark.posix
def test_a_write_without_room_leaves_the_older_ones_and_says_why(tmp_path, file_size_limit):
    for step in (10, 20):
        states.save(tmp_path, step, state(step))
    before = sorted(tmp_path.iterdir())
    with file_size_limit(3000), pytest.raises(OSError, match="File too large"):
        states.save(tmp_path, 30, state(30))
    assert sorted(tmp_path.iterdir()) == before
    assert newest(tmp_path)["step"] == 20


def test_what_a_killed_write_left_is_written_over(tmp_path):
    states.save(tmp_path, 10, state(10))
    (tmp_path / ".state.part").write_bytes(b"half")
    assert newest(tmp_path)["step"] == 10
    states.save(tmp_path, 20, state(20))
    assert not list(tmp_path.glob(".*"))


def test_nothing_in_a_file_is_run(tmp_path):
    """Even under a name that holds the right checksum."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    states.save(tmp_path, 1, {"evil": Evil()})
    with pytest.raises(pickle.UnpicklingError):
        newest(tmp_path)
    assert not (tmp_path / "evil").exists()


def test_the_newest_of_several_folders_up_to_a_step_is_taken(tmp_path):
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


def test_what_the_clock_says_does_not_matter(tmp_path):
    """It may have been set back between two states."""
    for step in (10, 20):
        path = states.save(tmp_path, step, state(step))
        os.utime(path, (2_000_000_000 - step, 2_000_000_000 - step))
    assert newest(tmp_path)["step"] == 20


@pytest.mark.parametrize("keep", [0, 1])
def test_only_states_are_removed(tmp_path, keep):
    states.save(tmp_path, 1, state(1))
    kept = states.save(tmp_path, 2, state(2))
    others = ["notes.txt", "step000001-0123456789abcdef.damaged"]
    for name in (".state.part", *others):
        (tmp_path / name).touch()
    states.remove(tmp_path, keep=keep)
    assert {path.name for path in tmp_path.iterdir()} == {*others, *[kept.name] * keep}


def test_a_state_is_on_the_disk_before_it_has_its_name(tmp_path, disk_events, safely_written):
    path = states.save(tmp_path, 1, state(1))
    assert disk_events == safely_written(path)
