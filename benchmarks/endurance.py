"""A hundred workflows in one ComfyUI, and what has grown by them:

    python -m benchmarks.endurance --runs 100

Queues random workflows of the toy model in one real ComfyUI server: trainings of each kind,
class images, previews and scores, some stopped at random moments, some with errors. After the
first five and after all of them, what the server holds is counted, always after the same small
workflow. Needs COMFYUI_PATH and COMFYUI_PYTHON as the nodes' tests do, and Linux.

The last line says whether all workflows ended as they should. `--docs` writes the tables into
docs/faults.md.

    python -m benchmarks.endurance --together --runs 5

has two servers and the command line work in the same folders at once, so many times."""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.nodes.conftest import ComfyUI, Prompt, make_base
from trainer.storage.locks import is_locked

from .endurance_together import DONE, REFUSED, Together
from .endurance_workflows import KINDS, Workflows
from .pages import table, write_between

FIRST = 5
"""Workflows before the first count, which load everything that is loaded once."""
PROBE = Path(__file__).with_name("endurance_probe.py")
PLACE = "growth"
NOTHING: Prompt = {"1": {"class_type": "Log", "inputs": {"text": "nothing"}}}

Numbers = Mapping[str, int]


class Endurance:
    """One server, and the workflows that it runs."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.server = ComfyUI(make_base(folder / "base"))
        shutil.copy(PROBE, self.server.base / "custom_nodes")
        self._temp = folder / "tmp"
        self._temp.mkdir()
        self._rng = rng
        self.ended: Counter[tuple[str, str]] = Counter()
        """By kind of workflow and its last message."""
        self.faults: list[str] = []

    def start(self) -> None:
        self.server.start(TMPDIR=str(self._temp), OMP_NUM_THREADS="1")
        self._workflows = Workflows(self.server, self._rng)

    def run(self, kind: str) -> None:
        """Run a workflow of this kind to its end."""
        workflow = KINDS[kind](self._workflows)
        outcome = self.server.run(workflow.prompt, on_message=workflow.on_message)
        self.ended[kind, outcome.end.removeprefix("execution_")] += 1
        if outcome.end not in workflow.ends:
            last = outcome.events[-1][1]
            self.faults.append(f"{kind}: {outcome.end}, {last.get('exception_message', last)}")

    def numbers(self) -> Numbers:
        """What the server holds without its history, after a small workflow whose results are all
        that ComfyUI's cache keeps."""
        self.server.run(NOTHING)
        self.server.post("/history", {"clear": True})
        probed: dict[str, int] = self.server.get("/probe")
        assert self.server._process
        process = psutil.Process(self.server._process.pid)
        base = self.server.base
        return {
            "memory, MB": _own_memory(process.pid),
            "threads": process.num_threads(),
            "open files and sockets": process.num_fds(),
            "network connections": len(process.net_connections("inet")),
            "processes started": len(process.children()),
            "files in the temporary folder": _count(self._temp),
            "files in ComfyUI's temp folder": _count(base / "temp"),
            "unfinished files (.part)": len(list(base.rglob("*.part"))),
            "run folders that are locked": sum(map(is_locked, _runs(base))),
            **probed,
        }


def _own_memory(pid: int) -> int:
    """Memory of a process in MB, also what is swapped out, without files that are mapped: those
    come and go with the need of others."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(kB) for kB in re.findall(r"(?:RssAnon|VmSwap):\s+(\d+) kB", status)) >> 10


def _count(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def _runs(base: Path) -> list[Path]:
    return [path.parent for path in base.rglob("manifest.json")]


def _schedule(num_runs: int, rng: random.Random) -> list[str]:
    """Each kind about as often, in random order."""
    kinds = list(KINDS) * -(-num_runs // len(KINDS))
    return rng.sample(kinds[:num_runs], num_runs)


def growth(counts: Mapping[int, Numbers]) -> str:
    """A table of numbers by the count of workflows, in Markdown."""
    heads = ["", *(f"after {number}" for number in counts)]
    names = list(next(iter(counts.values())))
    rows = [[name, *(f"{numbers[name]:,}" for numbers in counts.values())] for name in names]
    return table([heads, *rows])


def ends(ended: Mapping[tuple[str, str], int]) -> str:
    """A table of how the workflows of each kind ended, in Markdown."""
    words = sorted({end for _, end in ended}, reverse=True)
    rows = [[kind, *(str(ended[kind, end] or "") for end in words)] for kind in KINDS]
    return table([["Workflow", *words], *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/faults.md")
    parser.add_argument("--together", action="store_true", help="two servers and a command line")
    arguments = parser.parse_args()
    if arguments.together:
        return work_together(arguments.runs, random.Random(arguments.seed))
    return work_alone(arguments.runs, random.Random(arguments.seed), is_kept=arguments.docs)


def work_alone(num_runs: int, rng: random.Random, *, is_kept: bool) -> int:
    """Return the exit code. `is_kept`: write the tables into the documentation."""
    counts: dict[int, Any] = {}
    with tempfile.TemporaryDirectory(prefix="endurance-") as name:
        endurance = Endurance(Path(name), rng)
        try:
            endurance.start()
            for number, kind in enumerate(_schedule(num_runs, rng), start=1):
                endurance.run(kind)
                print(number, kind, flush=True)  # noqa: T201
                if number in (FIRST, num_runs // 2, num_runs):
                    counts[number] = endurance.numbers()
                    print(growth(counts), flush=True)  # noqa: T201
        finally:
            endurance.server.stop()
    text = f"{ends(endurance.ended)}\n\n{growth(counts)}"
    print(text, *endurance.faults, sep="\n")  # noqa: T201
    if is_kept:
        write_between(PLACE, text)
    print(f"{len(endurance.faults)} workflows ended in another way than they should")  # noqa: T201
    return 1 if endurance.faults else 0


def work_together(num_rounds: int, rng: random.Random) -> int:
    """Return the exit code."""
    with tempfile.TemporaryDirectory(prefix="endurance-") as name:
        together = Together(Path(name), rng)
        try:
            together.start()
            for number in range(1, num_rounds + 1):
                together.round()
                print(number, dict(together.ended), flush=True)  # noqa: T201
        finally:
            together.stop()
    return 0 if {end for _, end in together.ended} <= {DONE, REFUSED} else 1


if __name__ == "__main__":
    sys.exit(main())
