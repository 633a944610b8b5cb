"""The runs beside one: those that differ in nothing but the number of steps, from whose states it
can go on, and the last one there, whatever it differs in."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import lr_schedules, records
from .config import TrainingConfig

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATES = "states"
STEPS = "steps"


class Siblings:
    """The runs of one definition, each over another number of steps."""

    def __init__(self, runs: Path, definition: Mapping[str, Any], config: TrainingConfig) -> None:
        self._config = config
        self._steps = {
            folder: other[STEPS]
            for folder, other in _definitions(runs)
            if _differences(definition, other) == [STEPS]
        }

    def forget(self) -> None:
        """From now on there are none."""
        self._steps.clear()

    def states(self) -> list[Path]:
        """The folders of those states that this run would have come to as well: none where the
        learning rates depend on how many steps there are."""
        endless = lr_schedules.is_endless(self._config.optimizer)
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
        if not lr_schedules.is_endless(optimizer):
            reason = (
                f"cannot be trained on, because {optimizer.lr_schedule} learning rates depend on "
                "how many steps there are (optimizer.lr_schedule)"
            )
        logger.warning("The run of %d steps with these same settings %s. This one begins at step "
                       "1.", max(shorter), reason)  # fmt: skip


def differences_to_last(runs: Path, definition: Mapping[str, Any]) -> list[str]:
    """The names of the settings in which the run that was begun or ended last differs; none if
    there is no run."""
    others = sorted(_definitions(runs), key=lambda other: (other[0] / MANIFEST).stat().st_mtime)
    return _differences(definition, others[-1][1]) if others else []


def _definitions(runs: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(runs.glob(f"*/{MANIFEST}")):
        yield path.parent, records.read(path).get("definition", {})


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
