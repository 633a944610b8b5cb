"""Measure how much longer ComfyUI takes to start with this pack: `python -m benchmarks.startup`.

Imports the pack several times, each time in a new process that has loaded ComfyUI before (the
checkout COMFYUI_PATH, with the Python COMFYUI_PYTHON or else this one). Prints the minimum and the
median processor time. Every user pays it at every start: it should stay below 0.3 seconds. A test
checks that no large library is imported, which would take seconds."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
STARTUP = """
import sys, time, importlib.util
sys.path.insert(0, sys.argv[1])
sys.argv = ["main.py", "--cpu", "--base-directory", sys.argv[3], sys.argv[2]]
root = sys.argv.pop()
import comfy.options
comfy.options.enable_args_parsing()
import utils.install_util, server, nodes, comfy.sd, psutil
before = set(sys.modules)
started = time.process_time()
spec = importlib.util.spec_from_file_location("/pack", root + "/__init__.py")
pack = importlib.util.module_from_spec(spec)
sys.modules["/pack"] = pack
spec.loader.exec_module(pack)
seconds = time.process_time() - started
new = {name.split(".")[0] for name in set(sys.modules) - before}
"""
"""Python code that loads ComfyUI and then the pack as `pack`. It leaves the seconds that the pack
took in `seconds`, and the libraries that it imported in `new`."""


def last_line(script: str, base: Path) -> str:
    """Run a script that begins with `STARTUP`, with `base` as ComfyUI's folder. Return the last
    line that it prints. Raises RuntimeError with its error output if it fails."""
    done = subprocess.run(
        [
            os.environ.get("COMFYUI_PYTHON", sys.executable), "-c", script,
            os.environ["COMFYUI_PATH"], str(ROOT), str(base),
        ],
        capture_output=True, text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", type=int, default=5)
    starts = parser.parse_args().starts
    with tempfile.TemporaryDirectory() as base:
        taken = [float(last_line(f"{STARTUP}\nprint(seconds)", Path(base))) for _ in range(starts)]
    print(  # noqa: T201
        f"Importing the pack takes at least {min(taken):.2f} s of processor time, "
        f"{statistics.median(taken):.2f} s in the median of {starts} starts."
    )


if __name__ == "__main__":
    main()
