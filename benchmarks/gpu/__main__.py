"""Test and measure training on a GPU: `python -m benchmarks.gpu`.

With a CUDA device: first the tests marked gpu, then peak memory and speed of Stable Diffusion 1.5,
stage by stage, the most important first. Each result is printed and written into docs/gpu.md at
once. Without a CUDA device, the program says so and ends."""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from .bench import GB, ROOT, Bench, say
from .random_model import SD15, TINY
from .results import Results
from .stages import STAGES, run_stages

NO_GPU = (
    "There is no CUDA device: the GPU tests and measurements are left out, and docs/gpu.md does "
    "not change."
)
PACKAGES = ("diffusers", "transformers", "bitsandbytes", "pytorch_optimizer", "safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    options = _parser().parse_args(arguments)
    if options.list:
        for stage in STAGES:
            say(f"{stage.name}: {stage.what} (at most {stage.seconds:.0f} s)")
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        say(NO_GPU)
        return 0
    logging.basicConfig(level=logging.WARNING)
    device = torch.device(options.device)
    results = Results(options.folder, find_facts(device), keeps_others=bool(options.stages))
    chosen = [stage for stage in STAGES if stage.name in (options.stages or [stage.name])]
    with tempfile.TemporaryDirectory(prefix="gpu-", dir=options.work) as folder:
        bench = Bench(
            device=device, shape=TINY if options.tiny else SD15, folder=Path(folder),
            reference=options.reference and options.reference.resolve(),
            reference_model=options.reference_model,
        )  # fmt: skip
        is_fine = run_stages(chosen, bench, results, started + 60 * options.minutes)
    return 0 if is_fine else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--stages", nargs="+", metavar="STAGE", choices=[stage.name for stage in STAGES],
        help="only these; the others stay on the page")  # fmt: skip
    add("--list", action="store_true", help="list the stages and end")
    add("--minutes", type=float, default=8.0, help="time limit for all stages together")
    add("--folder", type=Path, default=ROOT / "docs", help="where gpu.md and gpu.json are written")
    add("--work", type=Path, help="a folder with 10 GB of space for temporary files")
    add("--reference", type=Path, metavar="FILE", help="diffusers' train_dreambooth.py")
    add("--reference-model", type=Path, metavar="FOLDER",
        help="a model for it in diffusers' layout; default: one with random weights")  # fmt: skip
    # To test the program without a GPU.
    add("--device", default="cuda", help=argparse.SUPPRESS)
    add("--tiny", action="store_true", help=argparse.SUPPRESS)
    return parser


def find_facts(device: torch.device) -> dict[str, str]:
    """The card, and the versions that affect the measurements."""
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts = {
            "card": card.name,
            "memory": f"{card.total_memory / GB:.1f} GB",
            "capability": f"{card.major}.{card.minor}",
            "driver": _driver(),
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        }
    else:
        facts = {"card": "CPU"}
    versions = {name: _version(name) for name in PACKAGES}
    return {**facts, "Python": platform.python_version(), "torch": torch.__version__, **versions}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if not shutil.which(command[0]):
        return "unknown"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return next(iter(done.stdout.split()), "unknown")


if __name__ == "__main__":
    sys.exit(main())
