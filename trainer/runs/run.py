"""The folder of one run: where the run stands, what came of it, and who works on it. What makes it
the same run is `identity.py`'s business."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..data.examples import Example, find_examples
from ..methods.base import Method
from ..observer import Observer
from ..settings.config import TrainingConfig
from ..storage import json_files, states
from ..storage.locks import LOCK, locked
from ..storage.versions import versions
from . import disk_space, numerics, results
from .identity import Definition, Hashes, define
from .metadata import plain
from .numerics import NUMERICS_VERSION
from .recorder import Recorder
from .results import TrainingResult
from .resuming import resume
from .shorter_runs import MANIFEST, STATES, Siblings

if TYPE_CHECKING:
    from ..training.session import Session

logger = logging.getLogger(__name__)

OnExisting = Literal["reuse", "resume", "retrain"]


@contextmanager
def open_run(
    runs: Path,
    config: TrainingConfig,
    method: Method,
    photos: Sequence[Example],
    *,
    observer: Observer,
    on_existing: str,
) -> Iterator[Run]:
    """The run of this content, in a folder of its own in `runs`, for one process at a time. A run
    that ends early keeps a state to go on from.

    "reuse" takes what is there: a finished run's result, or the newest state, also that of a run
    over another number of steps. "resume" does too, but goes on with a run that was finished early,
    and refuses to begin one that is not there. "retrain" begins anew; finished checkpoints stay.
    ValueError for another word and for nothing to resume, RuntimeError if the run is being worked
    on already.
    """
    if on_existing not in get_args(OnExisting):
        words = ", ".join(get_args(OnExisting))
        raise ValueError(f"on_existing must be one of {words}, got {on_existing!r}.")
    hashes = Hashes(runs / "hashes.json")
    base_sha256 = hashes.sha256(config.base)
    embedding_sha256 = hashes.sha256(config.embedding) if config.embedding else ""
    class_images = _own_class_images(config)
    definition = define(config, method, base_sha256, embedding_sha256, photos, class_images)
    siblings = Siblings(runs, definition, config)
    run = Run(siblings, config, definition, hashes=hashes, observer=observer)
    if on_existing == "resume" and not run.is_there():
        raise ValueError(siblings.nothing_to_resume())
    run.folder.mkdir(parents=True, exist_ok=True)
    with locked(run.folder):
        run.open(on_existing)
        try:
            yield run
        except BaseException as error:
            # Numbers that led to none are no state to go on from: the one before stays.
            run.stop(keep=not isinstance(error, FloatingPointError))
            raise


class Run:
    """A run's folder, while this process works on it."""

    def __init__(
        self,
        siblings: Siblings,
        config: TrainingConfig,
        definition: Definition,
        *,
        hashes: Hashes,
        observer: Observer,
    ) -> None:
        self.folder = siblings.own()
        self.recorder = Recorder(self.folder, observer)
        self._config, self._definition, self._hashes = config, definition, hashes
        self._siblings = siblings
        self._manifest: dict[str, Any] = {}
        self._session: Session | None = None
        self._saved_step = 0
        self._has_told_size = False

    def is_there(self) -> bool:
        """Whether it was begun, or there is a state to begin it with."""
        begun = (self.folder / MANIFEST).exists()
        return begun or states.exist(self._usable_states(), up_to=self._config.steps)

    def open(self, on_existing: str) -> None:
        """Take the folder, which is locked, as it is, or make it anew."""
        if on_existing == "retrain":
            _clear(self.folder)
            self._siblings.forget()
        for part in self.folder.rglob(".*.part"):
            part.unlink()  # what a killed process left: whoever writes here holds the lock
        self._manifest = json_files.read(self.folder / MANIFEST)
        if not self._manifest:
            self._note({
                "identity": self.folder.name,
                "status": "unfinished",
                "started": _now(),
                "config": plain(self._config),
                "definition": dict(self._definition.facts),
                numerics.KEY: NUMERICS_VERSION,
                "versions": versions(),
                "intermediate": [],
            })  # fmt: skip
        if on_existing == "resume":
            self._reopen()

    @property
    def steps_made(self) -> int:
        """Steps that the newest usable state saves making again."""
        return states.newest_step(self._usable_states(), up_to=self._config.steps)

    @property
    def started(self) -> datetime:
        return datetime.fromisoformat(self._manifest["started"])

    @property
    def intermediate(self) -> list[Path]:
        """Intermediate checkpoints of earlier sessions, the oldest first."""
        return [Path(path) for path in self._manifest["intermediate"]]

    def result(self) -> TrainingResult | None:
        """What an earlier session finished, if its files still are those it wrote."""
        if self._manifest["status"] != "finished":
            return None
        made = self._manifest["result"]
        if changed := results.changed_file(made, self._hashes):
            logger.warning("This run was finished, but its file '%s' is gone or another. It is "
                           "trained again.", changed)  # fmt: skip
            self._note({"status": "unfinished", "started": _now(), "result": None})
            return None
        if self._config.output.keep_state and not self._has_own_state():
            logger.warning("This run was finished without output.keep_state, and is found again "
                           "without a state to train on from.")  # fmt: skip
        if self._numerics != NUMERICS_VERSION:
            logger.warning("This run was made by %s. Its result is taken as it is; set "
                           "on_existing to retrain to train it again.",
                           numerics.describe(self._numerics))  # fmt: skip
        kept = self.recorder
        scores = kept.scores() if made["is_scored"] else []
        return results.recall(made, kept.reports(), kept.previews(), scores)

    def begin(self, session: Session) -> None:
        """Bring a new session to where the run stands, and stand by it from now on."""
        found = resume(session, self._usable_states(), up_to=self._config.steps)
        if found:
            steps = self._siblings.steps(found[0])
            logger.info("Going on after step %d%s.", len(session.reports),
                        f" of the run of {steps} steps" if steps else "")  # fmt: skip
        else:
            self._siblings.warn_of_shorter()
        # A run is of the version that made its first step.
        self._note({numerics.KEY: found[1] if found else NUMERICS_VERSION})
        self._session, self._saved_step = session, len(session.reports)
        # What came after the state is made again, and must not be listed twice.
        self.recorder.rewrite(session.reports, session.scores)

    def save_state(self, *, is_last: bool = False) -> None:
        """Keep a state of the session. A disk that is full costs no more than this state. The last
        one of a run that is ended early may take the room of its result."""
        assert self._session, "begin comes first"
        step = len(self._session.reports)
        kept = f"; that of step {self._saved_step} stays" if self._saved_step else ""
        with json_files.warn_on_failure(f"the state of step {step}{kept}"):
            disk_space.require_for_state(self._session, self.states, is_last=is_last)
            state = {**self._session.state(), numerics.KEY: self._numerics}
            path = states.save(self.states, step, state)
            self._saved_step = step
            self._note_intermediate()
            if not self._has_told_size:
                size = path.stat().st_size
                num_weights = sum(p.numel() for p in self._session.parameters)
                logger.info("The state for resuming takes %s, %.1f bytes per trained weight.",
                            disk_space.format_bytes(size), size / num_weights)  # fmt: skip
                self._has_told_size = True

    def stop(self, *, keep: bool) -> None:
        """The session has ended early: keep a state of it, unless it is not worth it."""
        if self._session is None or not self._session.reports:
            return
        last = len(self._session.reports)
        if keep and self._session.is_whole and self._saved_step < last:
            self.save_state(is_last=True)
        where = "there" if self._saved_step == last else f"step {self._saved_step}"
        way = (
            f"Run the same again to go on from {where}."
            if self._saved_step
            else "It left no state."
        )
        logger.warning("Stopped after step %d. %s", last, way)

    def finish(self, result: TrainingResult) -> None:
        """The session has come to its end: keep what it made, and a state only if it is wanted."""
        assert self._session, "begin comes first"
        with json_files.warn_on_failure("the record that this run is finished"):
            self.recorder.rewrite(self._session.reports, self._session.scores)
            self._note({"status": "finished", "result": results.record(result, self._hashes)})
            if self._config.output.keep_state and self._saved_step < result.steps:
                self.save_state(is_last=True)
            states.remove(self.states, keep=int(self._config.output.keep_state))
        self._session = None

    @property
    def states(self) -> Path:
        """Where its states are."""
        return self.folder / STATES

    @property
    def _numerics(self) -> int:
        return int(self._manifest.get(numerics.KEY, 0))

    def _usable_states(self) -> list[Path]:
        return [self.states, *self._siblings.states()]

    def _has_own_state(self) -> bool:
        return states.exist([self.states], up_to=self._config.steps)

    def _reopen(self) -> None:
        """Take a run that was finished early as one that was stopped."""
        if self._manifest["status"] != "finished":
            return
        made = self._manifest["result"]
        if made["steps"] == made["total_steps"]:
            return
        if not self._has_own_state():
            raise ValueError(
                f"This run was finished early, after step {made['steps']} of "
                f"{made['total_steps']}, and left no state to go on from (output.keep_state). Set "
                "on_existing to reuse to take its result, or to retrain to begin anew."
            )
        self._note({"status": "unfinished", "result": None})

    def note_intermediate(self) -> None:
        """Remember the intermediate checkpoints that there are, so that a later session knows
        them."""
        with json_files.warn_on_failure("the list of intermediate checkpoints"):
            self._note_intermediate()

    def _note_intermediate(self) -> None:
        paths = dict.fromkeys([*self.intermediate, *self.recorder.checkpoints])
        self._note({"intermediate": [str(path) for path in paths if path.exists()]})

    def _note(self, facts: Mapping[str, Any]) -> None:
        self._manifest.update(facts)
        json_files.write(self.folder / MANIFEST, self._manifest)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _clear(folder: Path) -> None:
    """Forget all of a run, but for its checkpoints, which lie elsewhere."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _own_class_images(config: TrainingConfig) -> list[Example]:
    prior = config.prior
    if prior.weight == 0 or not prior.images:
        return []
    return find_examples(prior.images, prior.prompt, is_prior=True)
