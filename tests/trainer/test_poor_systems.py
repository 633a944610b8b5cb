"""A run on a system without what others have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.toy import PHOTOS

ROOT = Path(__file__).parents[2]


@pytest.mark.posix
def test_a_run_needs_no_home_no_temporary_folder_and_no_locale(small_disk, tmp_path):
    home = small_disk(1 << 16)
    subprocess.run(["mount", "-o", "remount,ro", str(home)], check=True)
    lacking = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "LC_ALL": "POSIX",
               "TMPDIR": str(tmp_path / "missing")}  # fmt: skip
    folder = tmp_path / "강아지"
    command = [
        sys.executable, "-m", "trainer", "train", "--base", "toy", "--dataset.photos", str(PHOTOS),
        "--dataset.prompt", "a cup", "--device", "cpu", "--vram", "off", "--steps", "1",
        "--optimizer.learning-rate", "1e-4", "--output.folder", str(folder),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | lacking, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in folder.glob("*.safetensors")] == ["dreambooth.safetensors"]
