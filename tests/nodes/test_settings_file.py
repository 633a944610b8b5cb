"""A run that was set up in ComfyUI, made again by the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.xdist_group("comfyui")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command_line():
    """Runs `python -m trainer` with ComfyUI's Python, and returns what it says."""

    def run(*arguments):
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        done = subprocess.run(
            [python, "-m", "trainer", *map(str, arguments)],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


def test_the_settings_file_of_a_run_makes_the_same_run(
    comfyui, toy_graph, new_seed, tmp_path, command_line
):
    name = f"again-{new_seed}"
    outcome = comfyui.run(toy_graph(seed=new_seed, name=name))
    (view,) = outcome.outputs("3")["dreambooth"]
    runs = comfyui.base / "output" / "dreambooth" / "runs"
    (settings,) = [
        path
        for path in runs.glob("*/settings.toml")
        if f'name = "{name}"' in path.read_text("utf-8")
    ]
    trained = comfyui.base / "models" / "checkpoints" / view["file"]

    assert f"Found {trained}" in command_line("train", "--settings", settings, "--device", "cpu")

    said = command_line(
        "train", "--settings", settings, "--device", "cpu", "--output.folder", tmp_path, "--runs",
        tmp_path / "runs",
    )  # fmt: skip
    (made,) = re.findall(r"Wrote (.+\.safetensors)", said)
    first, second = load_file(trained), load_file(made)
    assert first.keys() == second.keys()
    assert all((first[key] == second[key]).all() for key in first)
    (again,) = (tmp_path / "runs").glob("*/")
    assert again.name == settings.parent.name
