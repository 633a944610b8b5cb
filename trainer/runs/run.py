"""The folder of one run: earlier sessions are reused or resumed from it, and the current session is
saved in it."""

from __future__ import annotations

import logging
import shutil
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..checkpoint import delete_unfinished
from ..methods.base import Method
from ..observer import Observer
from ..settings.config import TrainingConfig
from ..storage import json_files, states
from ..storage.listing import all_below
from ..storage.locks import LOCK
from . import disk_space, numerics, results, settings_file
from .identity import Hashes
from .manifest import MANIFEST, STATES, Manifest
from .numerics import NUMERICS_VERSION
from .recorder import Recorder
from .related_runs import RelatedRuns
from .results import TrainingResult
from .resuming import resume

if TYPE_CHECKING:
    from ..training.session import Session
    from .outputs import Outputs

logger = logging.getLogger(__name__)

OnExisting = Literal["reuse", "resume", "retrain"]


class Run:
    """A run's folder, while this process works on it."""

    def __init__(
        self,
        related: RelatedRuns,
        config: TrainingConfig,
        method: Method,
        manifest: Manifest,
        *,
        hashes: Hashes,
        observer: Observer,
    ) -> None:
        self.folder = manifest.folder
        self._recorder = Recorder(self.folder, observer, config.preview.prompts)
        self._config, self._method = config, method
        self._manifest, self._hashes = manifest, hashes
        self._related = related
        self._session: Session | None = None
        self._saved_step = 0
        self._has_logged_size = False

    def require_started(self) -> None:
        """Raise ValueError unless the run was started before, or another run has a state for it."""
        started = (self.folder / MANIFEST).exists()
        if not started and not states.exist(self._usable_states(), up_to=self._config.steps):
            raise ValueError(self._related.nothing_to_resume())

    def open(self, on_existing: str) -> None:
        """Read what the folder holds, or start over. The caller holds the lock."""
        if on_existing == "retrain":
            _clear(self.folder)
            self._related.exclude_states()
        for path in all_below(self.folder):
            if fnmatch(path.name, ".*.part"):
                path.unlink()  # left by a killed process: whoever writes here holds the lock
        self._manifest.open()
        with json_files.warn_on_failure("the settings for the command line"):
            settings_file.write(self.folder, self._config, self._method)
        if on_existing == "resume":
            self._reopen()

    @property
    def observer(self) -> Observer:
        """Records what the session reports, and passes it on."""
        return self._recorder

    @property
    def states(self) -> Path:
        """The folder of the run's own states."""
        return self.folder / STATES

    @property
    def steps_made(self) -> int:
        """The step of the newest state to resume from; 0 without one."""
        return states.newest_step(self._usable_states(), up_to=self._config.steps)

    @property
    def is_resumed(self) -> bool:
        """Whether earlier sessions worked on the run."""
        return not self._manifest.is_new

    @property
    def started(self) -> datetime:
        return self._manifest.started

    @property
    def intermediate(self) -> list[Path]:
        """Intermediate checkpoints of earlier sessions, oldest first."""
        return self._manifest.intermediate

    def previews(self) -> list[np.ndarray]:
        """The last previews of earlier sessions, [H, W, 3] uint8 each."""
        return self._recorder.previews()

    def result(self) -> TrainingResult | None:
        """The result of an earlier session. None: the run is not finished, or its files are missing
        or have changed."""
        made = self._manifest.result
        if made is None:
            return None
        if changed := results.changed_file(made, self._hashes):
            logger.warning("This run is finished, but its file '%s' is missing or has changed. "
                           "Training it again.", changed)  # fmt: skip
            self._manifest.restart()
            return None
        if not self._manifest.keeps_state:
            with suppress(OSError):  # what a killed session has left; if not now, next time
                states.remove(self.states, keep=0)
        if self._config.output.keep_state and not self._has_own_state():
            logger.warning("This run was finished without output.keep_state, so it has no state to "
                           "continue from.")  # fmt: skip
        if self._manifest.numerics != NUMERICS_VERSION:
            logger.warning("This run was made by %s. Its result is reused; set on_existing to "
                           "retrain to train it again.",
                           numerics.describe(self._manifest.numerics))  # fmt: skip
        for file in made["files"].values():
            delete_unfinished(Path(file["path"]).parent)
        self._announce_early_end(made["steps"], made["total_steps"])
        kept = self._recorder
        scores = kept.scores() if made["is_scored"] else []
        return results.recall(made, kept.reports(), kept.previews(), scores)

    def begin(self, session: Session) -> None:
        """Bring a new session to the newest state of the run, and save its progress from now on."""
        found = resume(session, self._usable_states(), up_to=self._config.steps)
        if found:
            steps = self._related.steps_of(found[0])
            logger.info("Resuming after step %d%s.", len(session.reports),
                        f" of the run of {steps} steps" if steps else "")  # fmt: skip
        else:
            self._related.warn_of_shorter()
        # The numerics version of a run is that of its first step.
        self._manifest.note_numerics(found[1] if found else NUMERICS_VERSION)
        self._session, self._saved_step = session, len(session.reports)
        # Steps after the state are repeated, and must not be listed twice.
        self._recorder.rewrite(session.reports, session.scores)
        if found:
            self._recorder.on_resume(session.reports, session.scores)

    def stepping(self, session: Session, outputs: Outputs) -> AbstractContextManager[None]:
        """Encloses the steps. Does nothing: if they end early, `stop` saves a state."""
        return nullcontext()

    def save_state(self, *, is_last: bool = False) -> None:
        """Save a state of the session. If the disk is full, only this state is lost. `is_last`: the
        run ends early, so its state may use the space of its result."""
        assert self._session, "begin comes first"
        step = len(self._session.reports)
        kept = f"; the state of step {self._saved_step} is kept" if self._saved_step else ""
        with json_files.warn_on_failure(f"the state of step {step}{kept}"):
            disk_space.require_for_state(self._session, self.states, is_last=is_last)
            state = {**self._session.state(), numerics.KEY: self._manifest.numerics}
            path = states.save(self.states, step, state)
            self._saved_step = step
            self._note_intermediate()
            self._log_size(path, self._session)

    def note_intermediate(self) -> None:
        """Record which intermediate checkpoints exist, for later sessions."""
        with json_files.warn_on_failure("the list of intermediate checkpoints"):
            self._note_intermediate()

    def stop(self, *, save: bool) -> None:
        """The session ends early. Save a state of it if `save`, and log how to resume."""
        if self._session is None or not self._session.reports:
            return
        last = len(self._session.reports)
        if save and self._session.is_whole and self._saved_step < last:
            self.save_state(is_last=True)
        where = "there" if self._saved_step == last else f"step {self._saved_step}"
        advice = (
            f"Run the same again to resume from {where}."
            if self._saved_step
            else "No resume point was saved."
        )
        message = f"Stopped after step {last}. {advice}"
        self._recorder.on_early_end(message)
        logger.warning("%s", message)

    def finish(self, result: TrainingResult) -> None:
        """The session is complete. Record its result, and keep its last state if configured."""
        assert self._session, "begin comes first"
        keep = self._config.output.keep_state
        with json_files.warn_on_failure("the record that this run is finished"):
            self._recorder.rewrite(self._session.reports, self._session.scores)
            self._manifest.finish(results.record(result, self._hashes), keeps_state=keep)
            if keep and self._saved_step < result.steps:
                self.save_state(is_last=True)
            states.remove(self.states, keep=int(keep))
        self._announce_early_end(result.steps, result.total_steps)
        self._session = None

    def _usable_states(self) -> list[Path]:
        return [self.states, *self._related.states()]

    def _has_own_state(self) -> bool:
        return states.exist([self.states], up_to=self._config.steps)

    def _announce_early_end(self, steps: int, total_steps: int) -> None:
        """Report how to continue a run that was finished early."""
        advice = (
            "Set on_existing to resume to continue from there."
            if self._has_own_state()
            else "It kept no state to continue from, because keep_state was off. Set on_existing "
            "to retrain to start over."
        )
        if steps < total_steps:
            self._recorder.on_early_end(
                f"Finished early, after step {steps} of {total_steps}. {advice}"
            )

    def _reopen(self) -> None:
        """Turn a run that was finished early into one that was stopped."""
        made = self._manifest.result
        if made is None or made["steps"] == made["total_steps"]:
            return
        if not self._has_own_state():
            raise ValueError(
                f"This run was finished early, after step {made['steps']} of "
                f"{made['total_steps']}, and cannot be resumed, because it kept no state "
                "(output.keep_state). Set on_existing to reuse to get its result, or to retrain to "
                "start over."
            )
        self._manifest.reopen()

    def _note_intermediate(self) -> None:
        paths = dict.fromkeys([*self.intermediate, *self._recorder.checkpoints])
        self._manifest.note_intermediate(paths)

    def _log_size(self, state: Path, session: Session) -> None:
        if not self._has_logged_size:
            size = state.stat().st_size
            num_weights = sum(parameter.numel() for parameter in session.parameters)
            logger.info("The state for resuming takes %s, %.1f bytes per trained weight.",
                        disk_space.format_bytes(size), size / num_weights)  # fmt: skip
            self._has_logged_size = True


def _clear(folder: Path) -> None:
    """Delete everything in a run's folder except its lock. Its checkpoints are elsewhere."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
