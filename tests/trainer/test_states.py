"""States: what comes back, what stays, and what is done about damage."""

import os
import pickle
import random

import pytest
import torch

from trainer import states


def state(step: int) -> dict[str, object]:
    weights = torch.randn(1000, generator=torch.Generator().manual_seed(step))
    return {"step": step, "weights": [weights], "groups": ({"betas": (0.9, 0.99), "d": None},)}


def test_the_newest_comes_back_as_it_was_and_two_stay(tmp_path):
    assert states.load_newest(tmp_path / "none", mmap=False) is None
    for step in (9, 10, 100):
        states.save(tmp_path, step, state(step))
    assert sorted(path.name[:10] for path in tmp_path.iterdir()) == ["step000010", "step000100"]
    for mmap in (False, True):
        loaded = states.load_newest(tmp_path, mmap=mmap)
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
    assert states.load_newest(tmp_path, mmap=False)["step"] == 10
    aside = path.with_suffix(".damaged")
    assert caplog.messages == [
        f"The state '{path}' is damaged. It is not used, and kept as '{aside.name}'."
    ]
    assert aside.exists()
    assert states.load_newest(tmp_path, mmap=False)["step"] == 10


def test_a_write_without_room_leaves_the_older_ones_and_says_why(tmp_path, file_size_limit):
    for step in (10, 20):
        states.save(tmp_path, step, state(step))
    before = sorted(tmp_path.iterdir())
    with file_size_limit(3000), pytest.raises(OSError, match="File too large"):
        states.save(tmp_path, 30, state(30))
    assert sorted(tmp_path.iterdir()) == before
    assert states.load_newest(tmp_path, mmap=False)["step"] == 20


def test_what_a_killed_write_left_is_written_over(tmp_path):
    states.save(tmp_path, 10, state(10))
    (tmp_path / ".state.part").write_bytes(b"half")
    assert states.load_newest(tmp_path, mmap=False)["step"] == 10
    states.save(tmp_path, 20, state(20))
    assert not list(tmp_path.glob(".*"))


def test_nothing_in_a_file_is_run(tmp_path):
    """Even under a name that holds the right checksum."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    states.save(tmp_path, 1, {"evil": Evil()})
    with pytest.raises(pickle.UnpicklingError):
        states.load_newest(tmp_path, mmap=False)
    assert not (tmp_path / "evil").exists()


def test_only_states_are_removed(tmp_path):
    states.save(tmp_path, 1, state(1))
    for name in (".state.part", "step000001-0123456789abcdef.damaged", "notes.txt"):
        (tmp_path / name).touch()
    states.remove_all(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.txt", "step000001-0123456789abcdef.damaged",
    ]  # fmt: skip
