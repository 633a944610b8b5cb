"""Starting the program. What it then does is tested in cli/test_program.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MISSING = "raise ModuleNotFoundError(\"No module named 'x'\", name='x')"


@pytest.mark.parametrize(
    ("module", "content", "package", "reason"),
    [
        ("tyro", MISSING, "x", "No module named 'x'"),
        ("PIL", "Image = 1\nraise ImportError('DLL load failed', name='PIL._imaging')", "pillow",
         "DLL load failed"),
        ("torch", "raise OSError('Error loading c10.dll')", "torch", "Error loading c10.dll"),
        ("tqdm", "NUMBERS = numpy.zeros(1)", "tqdm", "name 'numpy' is not defined"),
    ],
)  # fmt: skip
def test_a_package_that_cannot_be_loaded_is_reported_in_a_line(
    tmp_path, module, content, package, reason
):
    (tmp_path / f"{module}.py").write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "runs"], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"The package {package} is missing, damaged or does not fit the others ({reason}). Install "
        f"it again with '\"{sys.executable}\" -m pip install --force-reinstall {package}', or "
        "remove it if you do not need it.\n"
    )
