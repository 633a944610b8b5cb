"""Shares the trials among processes, until the time is over."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from .every_call import Bench, Kind, Trial
from .in_turn import in_turn
from .power_loss import Cut, PowerLoss
from .scenarios import SCENARIOS
from .session import FORK

CALLS_PER_CUT = 3
"""Operations that fail for each power cut, while there are both."""
Outcome = tuple[str, str, str, str, tuple[str, ...], Kind | None]
"""The part, the row of its table, the outcome, what was tried, what is wrong, and the kind of a
fault of an operation."""
Attempt = Callable[[], Outcome]
Turn = tuple[int, int]
"""The number of a process, and how many there are."""


@dataclass(frozen=True)
class Plan:
    """What to try."""

    names: Sequence[str]
    """Of the kinds of runs."""
    seed: int = 0
    limit: int | None = None
    """The most trials of each kind of run and part."""
    only: str = ""


@dataclass
class Report:
    """The outcomes so far."""

    planned: Counter[str] = field(default_factory=Counter)
    """How many faults of operations there are, by call."""
    num_kinds: int = 0
    """Of those."""
    kinds: set[Kind] = field(default_factory=set)
    """Those that were tried."""
    calls: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    cuts: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    num_wrong: int = 0

    def add(
        self, part: str, name: str, outcome: str, description: str, findings: Any, kind: Kind | None
    ) -> None:
        self.kinds |= {kind} if kind else set()
        (self.calls if part == "calls" else self.cuts)[name][outcome] += 1
        if findings:
            self.num_wrong += 1
            print(f"{description}: {'; '.join(findings)}", flush=True)  # noqa: T201


def run_all(plan: Plan, folder: Path, num_workers: int, seconds: float) -> Report:
    """Try what is planned, as much as the time allows. Prints what is wrong at once."""
    queue, report = FORK.Queue(), Report()
    end = time.monotonic() + seconds
    processes = [
        FORK.Process(target=_work, args=(plan, folder / str(n), (n, num_workers), end, queue))
        for n in range(num_workers)
    ]
    for process in processes:
        process.start()
    num_left = len(processes)
    while num_left:
        part, *values = queue.get()
        if part == "end":
            num_left -= 1
        elif part == "planned":
            report.planned += values[0]
            report.num_kinds += values[1]
        else:
            report.add(part, *values)
    for process in processes:
        process.join()
        report.num_wrong += process.exitcode != 0
    return report


def _work(plan: Plan, folder: Path, turn: Turn, end: float, queue: Any) -> None:
    """One process: its share of the trials of each kind of run, the kinds in turn."""
    try:
        benches = [Bench(folder / name, SCENARIOS[name]) for name in plan.names]
        for attempt in in_turn([_attempts(bench, plan, turn, queue) for bench in benches]):
            if time.monotonic() > end:
                break
            queue.put(attempt())
    finally:
        queue.put(("end",))


def _attempts(bench: Bench, plan: Plan, turn: Turn, queue: Any) -> Iterator[Attempt]:
    """Faults of operations, and a power cut after each few of them."""
    number, num_workers = turn
    trials = [trial for trial in bench.trials() if plan.only in str(trial)]
    if number == 0:
        kinds = {trial.kind for trial in trials}
        queue.put(("planned", Counter(trial.operation.call for trial in trials), len(kinds)))
    calls = [partial(_try_call, bench, trial) for trial in trials[number::num_workers]]
    power = PowerLoss(bench)
    cuts = (partial(_try_cut, power, cut) for cut in power.cuts(plan.seed, turn))
    return in_turn([islice(calls, plan.limit)] * CALLS_PER_CUT + [islice(cuts, plan.limit)])


def _try_call(bench: Bench, trial: Trial) -> Outcome:
    verdict = bench.attempt(trial)
    return "calls", trial.operation.call, verdict.outcome, str(trial), verdict.findings, trial.kind


def _try_cut(power: PowerLoss, cut: Cut) -> Outcome:
    verdict = power.attempt(cut)
    return "cuts", cut.kind.name, verdict.outcome, str(cut), verdict.findings, None
