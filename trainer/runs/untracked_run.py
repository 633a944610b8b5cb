"""A run that is not kept in a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..observer import Observer
from .results import TrainingResult

if TYPE_CHECKING:
    from ..training.session import Session
    from .outputs import Outputs

logger = logging.getLogger(__name__)


class UntrackedRun:
    """Takes the place of a `run.Run` if there is no folder for runs: nothing is reused, resumed or
    recorded."""

    is_resumed = False
    states = None
    steps_made = 0
    intermediate: Sequence[Path] = ()

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.started = datetime.now(timezone.utc)

    def previews(self) -> list[np.ndarray]:
        return []

    def result(self) -> TrainingResult | None:
        return None

    def begin(self, session: Session) -> None: ...

    @contextmanager
    def stepping(self, session: Session, outputs: Outputs) -> Iterator[None]:
        """Encloses the steps. If they end early, the weights of the last one are saved: no state
        can be resumed."""
        try:
            yield
        except BaseException:
            step = len(session.reports)
            if step and session.is_whole:
                for path in outputs.save_step(is_last=True).values():
                    logger.warning("Saved the weights of step %d: %s", step, path)
            raise

    def save_state(self) -> None: ...

    def note_intermediate(self) -> None: ...

    def finish(self, result: TrainingResult) -> None: ...
