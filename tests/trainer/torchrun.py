"""Starts several processes, as users do."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 600
"""Seconds after which processes count as waiting for each other for ever."""


def torchrun(num_processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What they print, and torchrun's exit code. `arguments` are those of torchrun and then the
    program with its own. One process is started without torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    start = [*launcher, str(num_processes)] if num_processes > 1 else []
    return subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
