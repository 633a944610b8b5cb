"""Part 2: the power fails anywhere in a run, and the run is started again."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import checks, preload, session
from .disk import KINDS, Kind, Recording, State
from .every_call import Bench

COMPLETE, LATEST, OLDER, START, WRONG = OUTCOMES = (
    "found finished",
    "resumed from the newest state",
    "resumed from an older state",
    "began at step 1",
    "wrong",
)


@dataclass(frozen=True)
class Cut:
    """A state that a power cut may leave."""

    kind: Kind
    after: int
    """The number of the last operation before the cut."""
    state: State

    def __str__(self) -> str:
        return f"power cut after #{self.after} ({self.kind.name})"


@dataclass(frozen=True)
class Verdict:
    cut: Cut
    outcome: str
    """One of `OUTCOMES`."""
    findings: tuple[str, ...] = ()


class PowerLoss:
    """The record of one run, and what can be made of it."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._place = bench, bench.place
        log, data = bench.log, bench.log.with_suffix(".data")
        self._place.reset()
        session.run(self._place, log, data=data)
        operations = preload.operations(log)
        self.recording = Recording(self._place.out, self._place.kept, operations, data)
        data.unlink()

    def cuts(self, seed: int, turn: tuple[int, int] = (0, 1)) -> Iterator[Cut]:
        """Different states, in any order: one of each kind after each moment. `turn`: the number of
        this process and how many share the states."""
        rng, seen = random.Random(seed), set[bytes]()
        pairs = [(moment, kind) for moment in self.recording.cuts() for kind in KINDS]
        rng.shuffle(pairs)
        for moment, kind in pairs:
            state = self.recording.state(moment, kind, rng)
            digest = _digest(state)
            if digest not in seen and digest[0] % turn[1] == turn[0]:
                seen.add(digest)
                yield Cut(kind, moment, state)

    def attempt(self, cut: Cut) -> Verdict:
        """Start the run again on this state."""
        findings = [*self._lost(cut)]
        _write(cut.state, self._place.out)
        ended = session.run(self._place, self._bench.log)
        if ended.code:
            findings.append(ended.error or ended.traceback or f"exit code {ended.code}")
        elif problem := self._bench.difference():
            findings.append(problem)
        findings += checks.damage(self._place, self._bench.expected)
        newest = self._newest(cut)
        is_warned = bool(set(ended.warnings) - self._bench.expected.warnings)
        if ended.resumed != session.FINISHED and ended.resumed < newest and not is_warned:
            findings.append(f"began after step {ended.resumed} without a word, not {newest}")
        return Verdict(cut, WRONG if findings else _outcome(ended.resumed, newest), tuple(findings))

    def _lost(self, cut: Cut) -> Iterator[str]:
        """What had been reported as saved and is not there."""
        for path in self.recording.saved(cut.after):
            if cut.state.get(path) != self.recording.whole(path):
                yield f"lost {Path(path).relative_to(self._place.out)}"

    def _newest(self, cut: Cut) -> int:
        """The step of the newest state that had been reported as saved."""
        found = (re.search(r"states/step(\d+)", path) for path in self.recording.saved(cut.after))
        return max((int(match[1]) for match in found if match), default=0)


def _outcome(resumed: int, newest: int) -> str:
    if resumed == session.FINISHED:
        return COMPLETE
    if resumed >= newest:
        return LATEST if resumed else START
    return OLDER if resumed else START


def _digest(state: State) -> bytes:
    digest = hashlib.sha256()
    for name, content in state.items():
        digest.update(f"{preload.without_process(name)} {content and len(content)}\n".encode())
        digest.update(content or b"")
    return digest.digest()


def _write(state: State, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in state.items():
        if content is None:
            Path(name).mkdir(exist_ok=True)
        else:
            Path(name).write_bytes(content)
