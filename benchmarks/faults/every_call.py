"""Part 1: every file operation of a run fails once."""

from __future__ import annotations

import errno
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from . import checks, preload, session
from .checks import Expected
from .in_turn import in_turn, spread
from .preload import Effect, Fault, Operation
from .scenarios import Place, Scenario

NO_SPACE, BROKEN, DENIED = (
    (Effect.FAIL, errno.ENOSPC),
    (Effect.FAIL, errno.EIO),
    (Effect.FAIL, errno.EACCES),
)
FULL = (Effect.FULL_FROM_HERE, 0)
FAULTS: dict[str, tuple[tuple[Effect, int], ...]] = {
    "create": (NO_SPACE, BROKEN, DENIED, FULL),
    "open": (BROKEN, DENIED),
    "opendir": (BROKEN, DENIED),
    "readdir": (BROKEN,),
    "read": (BROKEN, (Effect.SHORT, 0), (Effect.CUT, 0), (Effect.FLIP, 0)),
    "mmap": ((Effect.FAIL, errno.ENODEV), (Effect.FLIP, 0)),
    "write": (NO_SPACE, BROKEN, (Effect.SHORT, 0), FULL),
    "ftruncate": (BROKEN,),
    "fsync": (NO_SPACE, BROKEN),
    "close": (NO_SPACE, BROKEN),
    "link": (NO_SPACE, BROKEN, DENIED),
    "rename": (NO_SPACE, BROKEN, DENIED),
    "unlink": (BROKEN, DENIED),
    "rmdir": (BROKEN, DENIED),
    "mkdir": (NO_SPACE, BROKEN, DENIED),
    "stat": (BROKEN, DENIED),
    "statvfs": (BROKEN,),
    "flock": ((Effect.FAIL, errno.ENOLCK),),
}
"""What can happen to each call."""
ROLES = (
    ("base checkpoint", r"inputs/base\.safetensors"),
    ("masks", r"inputs/photos/.*-mask\.png"),
    ("photos", r"inputs/photos/.*\.png"),
    ("captions", r"inputs/photos/.*\.txt"),
    ("the photos' folder", r"inputs.*"),
    ("class images", r"out/class_images.*"),
    ("hashes", r"out/runs/[^/]*hashes\.json.*"),
    ("the run's lock", r"out/runs/\w+/lock"),
    ("the run's manifest", r"out/runs/\w+/[.]?manifest\.json.*"),
    ("the run's settings", r"out/runs/\w+/[.]?settings\.toml.*"),
    ("losses and scores", r"out/runs/\w+/[.]?(metrics|scores)\.jsonl.*"),
    ("states", r"out/runs/\w+/states.*"),
    ("previews", r"out/(runs/\w+/)?previews.*"),
    ("the run's folder", r"out/runs.*"),
    ("checkpoints being written", r"out/\.[^/]*\.part.*"),
    ("finished checkpoints", r"out/[^/]*\.safetensors"),
    ("the output folder", r"out"),
)
UNNOTICED = {"base checkpoint", "masks", "photos", "captions", "the photos' folder"}
"""Files that come without a checksum: nobody can tell that a bit of them was read wrongly."""


def role(operation: Operation, place: Place) -> str:
    """What kind of file an operation is about."""
    path = Path(operation.path).relative_to(place.out.parent).as_posix()
    return next(name for name, pattern in ROLES if re.fullmatch(pattern, path))


Kind = tuple[str, str, str, Effect, int]
"""The kind of run, the call, the kind of file, and the fault."""


@dataclass(frozen=True)
class Trial:
    """One fault at one operation."""

    scenario: str
    operation: Operation
    role: str
    fault: Fault

    @property
    def kind(self) -> Kind:
        """All trials of a kind are expected to end alike."""
        fault = self.fault
        return self.scenario, self.operation.call, self.role, fault.effect, fault.error

    def __str__(self) -> str:
        fault = self.fault
        what = errno.errorcode[fault.error] if fault.effect is Effect.FAIL else fault.effect.name
        o = self.operation
        return f"{self.scenario} #{o.number} {o.call} {what} ({self.role}: {Path(o.path).name})"


@dataclass(frozen=True)
class Verdict:
    trial: Trial
    outcome: str
    """One of `OUTCOMES`."""
    findings: tuple[str, ...] = ()
    """What is wrong; empty if all is right."""


SAME, WARNED, REFUSED, UNKNOWN, WRONG = OUTCOMES = (
    "the same result",
    "the same result, and a warning",
    "failed with a message",
    "another input",
    "wrong",
)


class Bench:
    """One scenario, ready to be tried."""

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        self.place = Place(folder, scenario)
        self.log = folder / "log"
        self.place.create()
        self.place.reset()
        if scenario.is_resumed:
            self._kill_at_result()
        ended = session.run(self.place, self.log)
        self.expected: Expected = checks.expected(self.place, ended)
        self.operations = preload.operations(self.log)

    def _kill_at_result(self) -> None:
        """Run until the result is written, and keep what the killed process leaves."""
        session.run(self.place, self.log)
        last = [o.number for o in preload.operations(self.log) if o.call == "link"][-1]
        self.place.reset()
        session.run(self.place, self.log, Fault(last, Effect.KILL))
        self.place.keep()

    def trials(self) -> list[Trial]:
        """Every fault at every operation, so ordered that any number of the first ones is an even
        sample of each kind."""
        groups: dict[Kind, list[Trial]] = defaultdict(list)
        for operation in self.operations:
            what = role(operation, self.place)
            for effect, error in FAULTS[operation.call]:
                fault = Fault(operation.number, effect, error)
                trial = Trial(self.place.scenario.name, operation, what, fault)
                groups[trial.kind].append(trial)
        return list(in_turn([spread(group) for group in spread([*groups.values()])]))

    def attempt(self, trial: Trial) -> Verdict:
        """Run with the fault, then again without."""
        self.place.reset()
        ended = session.run(self.place, self.log, trial.fault)
        findings = checks.damage(self.place, self.expected)
        outcome = REFUSED
        if ended.code:
            later = trial.fault.effect is Effect.FULL_FROM_HERE
            findings += checks.words(ended, None if later else trial.operation)
        else:
            outcome, wrong = self._outcome(ended, trial)
            findings += wrong
        findings += ended.unraisable
        if outcome is not UNKNOWN:
            findings += self._run_again(trial)
        return Verdict(trial, WRONG if findings else outcome, tuple(findings))

    def _outcome(self, ended: session.Ended, trial: Trial) -> tuple[str, list[str]]:
        """Of a run that succeeded, and what is wrong with it."""
        if problem := self.difference():
            if trial.fault.effect is Effect.FLIP and trial.role in UNNOTICED:
                return UNKNOWN, []
            if trial.fault.effect is Effect.CUT and trial.role == "captions":
                return UNKNOWN, []
            if not ended.warnings:
                return WRONG, [problem]
        if set(ended.warnings) - self.expected.warnings:
            return WARNED, []
        if ended.resumed != self.expected.resumed:
            return WRONG, [f"began again after step {ended.resumed} without a word"]
        missing = self.expected.names - checks.names(self.place.out)
        return SAME, [f"missing without a word: {', '.join(sorted(missing))}"] if missing else []

    def difference(self) -> str:
        try:
            return (
                ""
                if checks.result_of(self.place).equals(self.expected.result)
                else "other weights or losses"
            )
        except (ValueError, OSError) as error:
            return f"no result: {error}"

    def _run_again(self, trial: Trial) -> list[str]:
        again = session.run(self.place, self.log)
        if again.code:
            return [f"the next run failed: {again.error or again.traceback or again.code}"]
        problem = self.difference()
        findings = [f"after the next run: {problem}"] if problem else []
        left = [path.name for path in self.place.out.rglob("*.part") if not _is_empty_folder(path)]
        findings += [f"left behind: {', '.join(left)}"] if left else []
        return findings + checks.damage(self.place, self.expected)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
