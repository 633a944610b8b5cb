"""ComfyUI's own LoRA loader and ours make the same weights of a file. `benchmarks/lora_in_comfyui`
does the same for published sizes."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.lora_in_comfyui import STRENGTHS, layers_of

pytestmark = pytest.mark.xdist_group("comfyui")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("dora", [False, True])
def test_comfyui_makes_the_same_weights_and_uses_every_name(comfyui, sd15_checkpoint, dora):
    """Of linear layers, convolutions and the text encoder."""
    found = subprocess.run(
        [os.environ["COMFYUI_PYTHON"], "-m", "benchmarks.lora_in_comfyui", sd15_checkpoint,
         "--comfyui", os.environ["COMFYUI_PATH"], *(["--dora"] if dora else [])],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout.splitlines()[-1])
    assert report["layers"] == len(layers_of(sd15_checkpoint)) > 100
    assert report["messages"] == []
    assert report["differences"].keys() == {f"{strength:g}" for strength in STRENGTHS}
    assert max(report["differences"].values()) < 1e-3
