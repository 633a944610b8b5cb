"""Processes that torchrun starts, without a model."""

import os
import subprocess
import sys

import pytest

from tests.trainer.torchrun import ROOT, torchrun
from trainer.processes import ALONE, Processes

START = """
import signal
import sys
import torch
from trainer import processes

VALUES = {
    "number": 7, "text": ("a", None), "empty": torch.empty(0, 3), "scalar": torch.tensor(2.5),
    "bf16": torch.arange(6).bfloat16().reshape(2, 3).t(), "mask": torch.tensor([True, False]),
}

class Tasks:
    def compare(self, values):
        assert values.keys() == VALUES.keys() and values["text"] == VALUES["text"]
        for name, value in VALUES.items():
            if isinstance(value, torch.Tensor):
                assert values[name].dtype == value.dtype and torch.equal(values[name], value)

    def add(self):
        group.sum_(torch.tensor([float(10**group.rank)]))

    def deal(self, items):
        group.gather([f"{item} by {group.rank}" for item in group.share_of(items)])

    def fail(self):
        raise ValueError("there is no photo")

group = processes.JoinedProcesses(torch.device("cpu"))
if not group.is_leader:
    processes.end(processes.follow(group, Tasks()))
# torchrun sends it when another process fails; the command line has its own way to notice.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
"""
"""What all of them do first."""


class Third(Processes):
    """One of three processes, without the others."""

    def __init__(self, rank):
        self.rank, self.size = rank, 3


def run(program, num_processes=2):
    """What the leader of these processes prints, and their exit code."""
    done = torchrun(
        num_processes, "--no-python", sys.executable, "-c", START + program + "processes.end(0)"
    )
    assert done.stdout or done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.returncode


def test_items_are_dealt_out_in_turn():
    thirds = [Third(rank) for rank in range(3)]
    assert [process.share_of("abcdefgh") for process in thirds] == ["adg", "beh", "cf"]
    assert [process.share_of("abcd", before=4) for process in thirds] == ["c", "ad", "b"]
    assert ALONE.share_of("abc", before=5) == "abc"


def test_three_processes_share_values_sums_and_items():
    printed, code = run(
        """
with processes.leading(group):
    group.call("compare", VALUES)
    group.call("add")
    total = torch.tensor([1.0])
    group.sum_(total)
    print(total.item())
    items = ["a", "b", "c", "d", "e"]
    group.call("deal", items)
    print(list(group.gather([f"{item} by 0" for item in group.share_of(items)])))
""",
        num_processes=3,
    )
    assert printed == ["111.0", "['a by 0', 'b by 1', 'c by 2', 'd by 0', 'e by 1']"]
    assert code == 0


def test_the_leader_says_why_another_process_has_ended():
    printed, code = run(
        """
try:
    with processes.leading(group):
        group.call("fail")
        group.sum_(torch.zeros(1))
except RuntimeError as error:
    print(error, flush=True)
    raise
"""
    )
    assert printed == [
        "Another of the 2 processes that train together has ended (process 2: there is no photo). "
        "None can go on without the others. Run the same again to resume."
    ]
    assert code != 0


def test_an_error_of_all_processes_is_the_leaders():
    printed, code = run(
        """
try:
    with processes.leading(group):
        group.call("fail")
        raise ValueError("there is no photo")
except ValueError as error:
    print(error, flush=True)
    raise
"""
    )
    assert printed == ["there is no photo"]
    assert code != 0


def test_an_error_of_the_leader_ends_the_others():
    printed, code = run(
        """
try:
    with processes.leading(group):
        raise ValueError("there is no model")
except ValueError as error:
    print(error, flush=True)
"""
    )
    assert printed == ["there is no model"]
    assert code == 0


def test_a_process_ends_with_its_last_output_and_without_pythons_shutdown():
    program = """
import atexit
from trainer import processes

atexit.register(print, "shut down")
print("trained")
processes.end(3)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("trained\n", "", 3)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_followers_say_nothing(rank):
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "priors", "--base", "missing"], cwd=ROOT,
        env={**os.environ, "WORLD_SIZE": "2", "RANK": rank}, capture_output=True, text=True,
    )  # fmt: skip
    said = (
        "Only train, lora and textual-inversion can use several processes. Start this command "
        "without torchrun.\n"
    )
    assert done.stderr.endswith(said) == (rank == "0")
    assert done.returncode == 1


def test_a_pytorch_without_distributed_trains_alone():
    """As some builds for AMD cards on Windows."""
    program = """
import sys
import torch
import torch.distributed as dist

del torch._C._c10d_init
sys.modules["torch.distributed.rendezvous"] = None
for name in ("all_reduce", "broadcast_object_list", "GradBucket", "DistError"):
    delattr(dist, name)
from trainer import loop, processes
try:
    processes.JoinedProcesses(torch.device("cpu"))
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == (
        "This PyTorch was built without torch.distributed, so it cannot use several processes. "
        "Start one without torchrun, or install another PyTorch.\n"
    ), done.stderr
