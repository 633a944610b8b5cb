"""Runs the tests marked `gpu` in a separate process."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .bench import ROOT, LeftOut, OutOfTime, say

COMMAND = [
    sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-v", "--tb=short", "--color=no",
    "-p", "no:cacheprovider",
    # Other versions than the project's may give deprecation warnings.
    "-W", "default",
]  # fmt: skip
THREADS = {"OMP_NUM_THREADS": "1"}
"""The same as in `make test`: with such small networks, more threads only wait for each other."""
OUTCOMES = ("passed", "failed", "skipped", "error")
_LINE = re.compile(r"(tests/gpu/\S+?::.+?) (PASSED|FAILED|SKIPPED|ERROR)\b")
_REASON = re.compile(r"(?:FAILED|ERROR) tests/gpu/\S+?::(.+)")
TAIL = 5
"""The number of lines shown if no test was run."""


def run_tests(folder: Path = ROOT, deadline: float = float("inf")) -> Iterator[dict[str, Any]]:
    """Yield one row: the number of tests by outcome, and the names of failed ones. Raises LeftOut
    if pytest is not installed."""
    if importlib.util.find_spec("pytest") is None:
        raise LeftOut("pytest is not installed")
    lines: list[str] = []
    is_late = _run(folder, deadline, lines)
    row = summarize(lines)
    if not row["outcomes"] and not is_late:
        raise RuntimeError("no test was run: " + " / ".join(lines[-TAIL:]))
    yield row
    if is_late:
        raise OutOfTime


def _run(folder: Path, deadline: float, lines: list[str]) -> bool:
    """Show and collect pytest's lines. Return whether it had to be stopped early."""
    with subprocess.Popen(
        COMMAND, cwd=folder, env=os.environ | THREADS, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
    ) as process:  # fmt: skip
        seconds = max(0.0, min(deadline - time.monotonic(), threading.TIMEOUT_MAX))
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            assert process.stdout
            for line in process.stdout:
                lines.append(line.rstrip())
                say(f"    {line.rstrip()}")
        finally:
            timer.cancel()
            process.kill()
    return time.monotonic() >= deadline


def summarize(lines: list[str]) -> dict[str, Any]:
    """The row for lines that pytest -v printed."""
    outcomes = {found[1]: found[2].lower() for line in lines if (found := _LINE.match(line))}
    reasons = [found[1] for line in lines if (found := _REASON.match(line))]
    failed = [name.split("::", 1)[1] for name, outcome in outcomes.items()
              if outcome in ("failed", "error")]  # fmt: skip
    counts = Counter(outcomes.values())
    return {
        "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES if counts[outcome]},
        # pytest gives no reasons if it is stopped early.
        "failed": reasons or failed,
    }


def describe(row: dict[str, Any]) -> str:
    """The row as one line."""
    counts = [f"{count} {outcome}" for outcome, count in row["outcomes"].items()]
    return ", ".join(counts) or "none"
