"""The tables of docs/faults.md, between two marks."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path

import torch

from . import every_call, power_loss
from .workers import Report

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
START, END = "<!-- make faults -->", "<!-- end of make faults -->"

Counts = Mapping[str, Counter[str]]
"""By row, how many trials had which outcome."""


def tables(report: Report, names: Sequence[str], minutes: float) -> str:
    """Both tables, and what ran."""
    planned, calls, cuts = report.planned, report.calls, report.cuts
    num_tried, num_planned = _total(calls), sum(planned.values())
    share = (
        "all of them"
        if num_tried == num_planned
        else f"an even sample of the {num_planned} that there are, because the time was limited"
    )
    rows = {f"{call} ({planned[call]})": calls[call] for call in sorted(calls)}
    return "\n".join([
        START,
        f"Written by `make faults` on {date.today()}, which ran for {minutes:.0f} minutes on "
        f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}, torch "
        f"{torch.__version__}). Kinds of runs: {', '.join(names)}.",
        "",
        f"File operations that fail: {num_tried} trials, {share}. They are of "
        f"{len(report.kinds)} of {report.num_kinds} kinds: an operation on a kind of file with a "
        "fault in a kind of run.",
        "",
        *_table("Operation (faults there are)", rows, every_call.OUTCOMES),
        "",
        f"Power cuts: {_total(cuts)} different states of the disk.",
        "",
        *_table("What the disk kept", cuts, power_loss.OUTCOMES),
        END,
    ])  # fmt: skip


def write(text: str, page: Path = PAGE) -> None:
    before, after = page.read_text("utf-8").split(START)[0], page.read_text("utf-8").split(END)[1]
    page.write_text(f"{before}{text}{after}", "utf-8")


def _table(first: str, rows: Counts, outcomes: Iterable[str]) -> list[str]:
    outcomes = list(outcomes)
    lines = [_line([first, "tried", *outcomes]), "|---|" + "---:|" * (1 + len(outcomes))]
    total = Counter[str]()
    for name, counts in rows.items():
        total += counts
        lines.append(_cells(name, counts, outcomes))
    return [*lines, _cells("all", total, outcomes)]


def _cells(name: str, counts: Counter[str], outcomes: Sequence[str]) -> str:
    return _line([name, counts.total(), *(counts[outcome] for outcome in outcomes)])


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _total(counts: Counts) -> int:
    return sum(each.total() for each in counts.values())
