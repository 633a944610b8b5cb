"""A command line that wants the run that ComfyUI is making. `python -m benchmarks.endurance
--together` has two servers and command lines in the same folders."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("comfyui")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command_line():
    """Runs `python -m trainer train` with a run's settings, and returns its exit code and what it
    says."""

    def run(settings):
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        done = subprocess.run(
            [python, "-m", "trainer", "train", "--settings", settings, "--device", "cpu"],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        return done.returncode, done.stderr

    return run


def test_a_command_line_is_refused_the_run_that_comfyui_is_making(
    comfyui, toy_graph, new_seed, command_line
):
    graph = toy_graph(seed=new_seed, name=f"both-{new_seed}", **{"preset.steps": 300})
    graph = {number: graph[number] for number in ("1", "2", "3")}
    runs, answers = comfyui.base / "output" / "dreambooth" / "runs", []

    def settings():
        (found,) = [
            path
            for path in runs.glob("*/settings.toml")
            if f'name = "both-{new_seed}"' in path.read_text("utf-8")
        ]
        return found

    def try_too(outcome):
        if outcome.steps and not answers:
            answers.append(command_line(settings()))
            comfyui.post("/dreambooth/finish", {"node": "3"})

    outcome = comfyui.run(graph, on_message=try_too)
    assert outcome.end == "execution_success", outcome.error
    ((code, said),) = answers
    refused = rf"Process \d+ is already working on this run in {re.escape(str(settings().parent))}"
    assert code == 1
    assert re.fullmatch(rf"{refused}\. Wait until it finishes, or stop it\.", said.split("\n")[-2])
    trained = (
        comfyui.base / "models" / "checkpoints" / "dreambooth" / f"both-{new_seed}.safetensors"
    )
    code, said = command_line(settings())
    assert (code, f"Found {trained}" in said) == (0, True)
    assert [path.name for path in trained.parent.glob(f"both-{new_seed}*")] == [trained.name]
