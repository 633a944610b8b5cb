"""The names of devices, on computers with and without GPUs."""

import pytest
import torch

from trainer import hardware
from trainer.__main__ import main
from trainer.hardware import ON_CPU, find_device


@pytest.fixture
def computer(monkeypatch):
    """Pretends that the computer has these devices."""

    def pretend(*, cards: int = 0, mps: bool = False, is_built: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.backends.mps, "is_built", lambda: mps)
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: is_built or cards > 0)

    return pretend


@pytest.mark.parametrize(
    ("devices", "name", "found"),
    [
        ({}, "cpu", "cpu"), ({}, "CPU", "cpu"), ({"cards": 2}, "", "cuda"),
        ({"cards": 2}, "cuda", "cuda"), ({"cards": 2}, "cuda:0", "cuda:0"),
        ({"cards": 2}, "cuda:1", "cuda:1"), ({"cards": 2}, "cpu", "cpu"),
        ({"mps": True}, "", "mps"), ({"mps": True}, "mps", "mps"),
    ],
)  # fmt: skip
def test_devices_that_exist_are_found(computer, caplog, devices, name, found):
    computer(**devices)
    assert find_device(name) == torch.device(found)
    assert caplog.messages == []


ALONE = " (this PyTorch was built for the CPU alone)"


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "gpu", "0", "-1", "meta", "cuda:", "mps"])
@pytest.mark.parametrize(
    ("devices", "rest"),
    [
        ({}, f"{ALONE}. It must be cpu, or left out to use cpu."),
        ({"is_built": True}, ". It must be cpu, or left out to use cpu."),
        ({"cards": 1}, ". It must be one of cuda, cpu, or left out to use cuda."),
        ({"cards": 3}, ". It must be one of cuda, cuda:1, cuda:2, cpu, or left out to use cuda."),
    ],
)
def test_other_devices_are_refused_with_those_that_exist(computer, devices, rest, name):
    computer(**devices)
    if name == "cuda" and "cards" in devices:
        return
    with pytest.raises(ValueError) as caught:
        find_device(name)
    assert str(caught.value) == f"device is {name!r}, but this computer has no such device{rest}"
    advised = str(caught.value).split("left out to use ")[1].strip(".")
    assert find_device(advised) == find_device("")


@pytest.mark.parametrize(("is_built", "why"), [(False, ALONE), (True, "")])
def test_falling_back_to_the_cpu_is_a_warning(computer, caplog, is_built, why):
    computer(is_built=is_built)
    assert find_device("") == torch.device("cpu")
    assert caplog.messages == [f"No GPU was found{why}, so this runs on the CPU. {ON_CPU}"]


def test_a_wrong_device_is_one_line_on_the_command_line(computer, caplog, tmp_path):
    computer()
    assert main(["demo", "--device", "gpu", "--folder", str(tmp_path / "out")]) == 1
    (message,) = caplog.messages
    assert message.startswith("device is 'gpu', but this computer has no such device")
    assert not (tmp_path / "out").exists()


def test_this_computers_devices_can_be_used():
    for name in hardware._available():
        assert torch.zeros(1, device=find_device(name)).item() == 0


def test_tensors_move_to_nvidia_cards_from_pinned_memory_without_waiting(monkeypatch):
    moves = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: moves.append("pin") or tensor)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, *where, **how: moves.append((where, how)) or tensor
    )
    numbers = torch.ones(3)
    for name in ("cuda", "cpu", "mps"):
        hardware.move(numbers, torch.device(name))
    assert moves == [
        "pin",
        ((torch.device("cuda"),), {"non_blocking": True}),
        ((torch.device("cpu"),), {}),
        ((torch.device("mps"),), {}),
    ]
