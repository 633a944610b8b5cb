"""The runs in a folder as seen from one run: which folder is its own, and which other runs have
states that it may continue."""

from __future__ import annotations

import logging
from pathlib import Path

from ..optimization import lr_schedules
from ..settings.config import TrainingConfig
from .identity import Definition
from .manifest import (
    MANIFEST,
    STATES,
    Content,
    definition_of,
    numerics_of,
    read_all,
)
from .manifest_check import FINISHED

logger = logging.getLogger(__name__)

STEPS = "steps"
WRITING = {"output.dtype", "output.private"}
"""The settings that decide how the result is written, but not what is trained."""


class RelatedRuns:
    """The runs related to one run.

    A run may continue the states of another run if both compute the same up to the state: if their
    definitions differ only in how the result is written, or in the number of steps, shorter or
    longer, on which the learning rates must not depend."""

    def __init__(self, runs: Path, definition: Definition, config: TrainingConfig) -> None:
        self._runs, self._definition, self._config = runs, definition, config
        self._manifests = dict(read_all(runs))
        self._steps = {
            folder: definition_of(content)[STEPS]
            for folder, content in self._manifests.items()
            if _trains_the_same(definition.differences(definition_of(content)))
        }
        """The planned steps of the runs that train the same, except for the number of steps."""

    def own_folder(self) -> Path:
        """The folder of the run itself, which need not exist yet.

        Several folders can have the same definition, because old versions started a new run
        whenever the source code changed. The newest numerics version wins, then a finished run,
        then the last one written."""
        found = [
            (_preference(folder, content), folder)
            for folder, content in self._manifests.items()
            if not self._definition.differences(definition_of(content))
        ]
        return max(found)[1] if found else self._runs / self._definition.identity

    def exclude_states(self) -> None:
        """Do not continue any other run."""
        self._steps.clear()

    def states(self) -> list[Path]:
        """The folders of the states of other runs that this run may continue."""
        return [
            folder / STATES
            for folder, steps in self._steps.items()
            if steps == self._config.steps or self._ignores_total_steps()
        ]

    def steps_of(self, state: Path) -> int | None:
        """The planned steps of the other run that a state file belongs to. None: the state belongs
        to this run itself."""
        return self._steps.get(state.parent.parent)

    def warn_of_shorter(self) -> None:
        """If runs of as many or fewer steps exist, say why their steps cannot be continued."""
        shorter = [steps for steps in self._steps.values() if steps <= self._config.steps]
        if not shorter:
            return
        reason = "it kept no state to continue from (output.keep_state)"
        if max(shorter) < self._config.steps and not self._ignores_total_steps():
            what = f"the {self._config.optimizer.lr_schedule} schedule", "optimizer.lr_schedule"
            if self._config.optimizer.anchor:
                what = "the pull back to the base model", "optimizer.anchor"
            reason = (
                f"it cannot be continued, because {what[0]} depends on the number of steps "
                f"({what[1]})"
            )
        logger.warning("A run of %d steps with the same settings exists, but %s. Training starts "
                       "at step 1.", max(shorter), reason)  # fmt: skip

    def nothing_to_resume(self) -> str:
        """A message that there is no run to resume, and how the most recent run differs."""
        message = (
            f"There is nothing to resume: {self._runs} contains no run with these settings and "
            "images."
        )
        if self._manifests:
            last = self._manifests[max(self._manifests, key=_written)]
            names = self._definition.differences(definition_of(last))
            message += f" The most recent run there differs in: {', '.join(names)}."
        return message + " Set on_existing to reuse to start a new run."

    def _ignores_total_steps(self) -> bool:
        return lr_schedules.ignores_total_steps(self._config.optimizer)


def _trains_the_same(differences: list[str]) -> bool:
    return bool(differences) and set(differences) <= {STEPS, *WRITING}


def _preference(folder: Path, content: Content) -> tuple[int, bool, float]:
    return numerics_of(content), content.get("status") == FINISHED, _written(folder)


def _written(folder: Path) -> float:
    return (folder / MANIFEST).stat().st_mtime
