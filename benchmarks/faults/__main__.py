"""Let every file operation of small runs fail once, and let the power fail anywhere:
`python -m benchmarks.faults --minutes 30`.

After each fault, no file with a final name may be incomplete, no file of the user may have changed,
the run must have succeeded or said in words what is wrong, and the next run must end with the same
weights and losses, bit by bit. The tables go to docs/faults.md unless the runs are chosen.

Needs Linux and a C compiler. The exit code is 1 if anything was wrong."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.pages import write_between

from . import preload


def main() -> int:
    arguments = _parser().parse_args()
    if not preload.is_loaded():
        return preload.rerun("benchmarks.faults", sys.argv[1:])
    # Loaded once here rather than in every forked process.
    import matplotlib.pyplot  # noqa: F401
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel  # noqa: F401

    from . import page
    from .scenarios import SCENARIOS
    from .workers import Plan, run_all

    names = arguments.runs or list(SCENARIOS)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        plan = Plan(names, arguments.seed, arguments.limit, arguments.only)
        report = run_all(plan, Path(folder), arguments.workers, arguments.minutes * 60)
    minutes = (time.monotonic() - started) / 60
    text = page.tables(report, names, minutes)
    print(text)  # noqa: T201
    if not arguments.runs:
        write_between(page.PLACE, text)
    return 1 if report.num_wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--minutes", type=float, default=30, help="time limit")
    add("--workers", type=int, default=2, help="runs at the same time")
    add("--runs", nargs="+", help="only these kinds; docs/faults.md stays as it is")
    add("--limit", type=int, help="no more trials than this, of each kind of run and part")
    add("--only", default="", help="only failing operations whose description contains this text")
    add("--seed", type=int, default=0, help="for power cuts")
    return parser


if __name__ == "__main__":
    sys.exit(main())
