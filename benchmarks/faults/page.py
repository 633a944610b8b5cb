"""The tables of the faults that were tried."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date

import torch

from benchmarks.pages import table

from . import every_call, power_loss
from .workers import Report

PLACE = "make faults"
"""Where they are in docs/faults.md."""

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
        f"Written by `make faults` on {date.today()}, which ran for {minutes:.0f} minutes on "
        f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}, torch "
        f"{torch.__version__}). Kinds of runs: {', '.join(names)}.",
        "",
        f"File operations that fail: {num_tried} trials, {share}. They are of "
        f"{len(report.kinds)} of {report.num_kinds} kinds: an operation on a kind of file with a "
        "fault in a kind of run.",
        "",
        _table("Operation (faults there are)", rows, every_call.OUTCOMES),
        "",
        f"Power cuts: {_total(cuts)} different states of the disk.",
        "",
        _table("What the disk kept", cuts, power_loss.OUTCOMES),
    ])  # fmt: skip


def _table(first: str, rows: Counts, outcomes: Iterable[str]) -> str:
    outcomes = list(outcomes)
    counted = {**rows, "all": sum(rows.values(), Counter[str]())}
    return table([
        [first, "tried", *outcomes],
        *([name, n.total(), *(n[outcome] for outcome in outcomes)] for name, n in counted.items()),
    ])  # fmt: skip


def _total(counts: Counts) -> int:
    return sum(each.total() for each in counts.values())
