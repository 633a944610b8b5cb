"""How much longer ComfyUI's start takes with this pack: `python -m benchmarks.startup`.

Imports the pack several times, each time in a process in which ComfyUI (the checkout COMFYUI_PATH,
run by COMFYUI_PYTHON or else by this Python) has been loaded before, and prints the least and the
median of the processor's seconds. Every user pays them at every start: they should stay below 0.3.
That no heavy library comes along, which is what would cost seconds, is a test's business."""

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
"""Python that loads ComfyUI and then the pack, as `pack`, and leaves the seconds that the pack took
and the libraries that came with it in `seconds` and `new`."""


def last_line(script: str, base: Path) -> str:
    """What a script that begins with `STARTUP` prints at its end, with `base` as ComfyUI's folder;
    RuntimeError with what it says if it fails."""
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
        f"Importing the pack takes {min(taken):.2f} s of the processor at least, "
        f"{statistics.median(taken):.2f} s in the median of {starts} starts."
    )


if __name__ == "__main__":
    main()
