"""The runs in a folder: the one of a definition, those beside it that differ in nothing but the
number of steps, from whose states it can go on, and the last one, whatever it differs in."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..optimization import lr_schedules
from ..settings.config import TrainingConfig
from ..storage import json_files
from . import numerics
from .identity import Definition

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATES = "states"
STEPS = "steps"

Facts = dict[str, Any]


class Siblings:
    """The runs of one definition, each over another number of steps."""

    def __init__(self, runs: Path, definition: Definition, config: TrainingConfig) -> None:
        self._runs, self._definition, self._config = runs, definition, config
        self._manifests = dict(manifests(runs))
        self._steps = {
            folder: _facts(manifest)[STEPS]
            for folder, manifest in self._manifests.items()
            if definition.differences(_facts(manifest)) == [STEPS]
        }

    def own(self) -> Path:
        """The folder of the run of this definition itself, or the one that it is to have. There can
        be several, because old versions began a new one whenever their sources changed: the latest
        numerics version comes first, then a finished run, then the one written to last."""
        found = [
            (
                manifest.get(numerics.KEY, 0),
                manifest.get("status") == "finished",
                _written(folder),
                folder,
            )
            for folder, manifest in self._manifests.items()
            if not self._definition.differences(_facts(manifest))
        ]
        return max(found)[-1] if found else self._runs / self._definition.identity

    def forget(self) -> None:
        """From now on there are none."""
        self._steps.clear()

    def states(self) -> list[Path]:
        """The folders of those states that this run would have come to as well: none where the
        learning rates depend on how many steps there are."""
        endless = lr_schedules.ignores_total_steps(self._config.optimizer)
        return [folder / STATES for folder in self._steps if endless]

    def steps(self, state: Path) -> int | None:
        """Over how many steps the run goes that a state's file belongs to; None for no sibling."""
        return self._steps.get(state.parent.parent)

    def warn_of_shorter(self) -> None:
        """Who raises the number of steps hears why those that were made do not count."""
        shorter = [steps for steps in self._steps.values() if steps < self._config.steps]
        if not shorter:
            return
        optimizer = self._config.optimizer
        reason = "left no state to train on from (output.keep_state)"
        if not lr_schedules.ignores_total_steps(optimizer):
            reason = (
                f"cannot be trained on, because {optimizer.lr_schedule} learning rates depend on "
                "how many steps there are (optimizer.lr_schedule)"
            )
        logger.warning("The run of %d steps with these same settings %s. This one begins at step "
                       "1.", max(shorter), reason)  # fmt: skip

    def nothing_to_resume(self) -> str:
        """That there is no run to go on with, and in which settings the one differs that was begun
        or ended last."""
        message = (
            f"No run of these settings and images is in {self._runs}, so there is none to go on "
            "with."
        )
        if self._manifests:
            last = self._manifests[max(self._manifests, key=_written)]
            names = self._definition.differences(_facts(last))
            message += f" The last one there differs in: {', '.join(names)}."
        return message + " Set on_existing to reuse to begin one."


def manifests(runs: Path) -> Iterator[tuple[Path, Facts]]:
    """Every run's folder with its manifest, which is empty where it cannot be read."""
    for path in sorted(runs.glob(f"*/{MANIFEST}")):
        yield path.parent, json_files.read(path)


def _facts(manifest: Facts) -> Facts:
    facts: Facts = manifest.get("definition", {})
    return facts


def _written(folder: Path) -> float:
    return (folder / MANIFEST).stat().st_mtime
