"""Records what a run reports in its folder: a line per step and per score, and the last
previews."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from ..observer import Observer, ScoreReport, StepReport
from ..storage import json_files

logger = logging.getLogger(__name__)

Report = TypeVar("Report", bound=StepReport | ScoreReport)


class _Log(Generic[Report]):
    """Reports of one kind in a JSON Lines file. Reports that cannot be written are lost, with one
    warning."""

    def __init__(self, path: Path, kind: type[Report], what: str) -> None:
        self._path, self._what = path, what
        self._kind: type[Report] = kind
        self._is_failing = False

    def read(self) -> list[Report]:
        """All reports so far; [] with a warning if the file cannot be read."""
        try:
            lines = self._path.read_text("utf-8").splitlines()
            return [self._kind(**json.loads(line)) for line in lines]
        except (OSError, ValueError, TypeError) as error:
            logger.warning("The %s of this run cannot be read: %s", self._what, error)
            return []

    def add(self, report: Report) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(report))
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                logger.warning("Could not write the %s to '%s' from step %d on: %s",
                               self._what, self._path, report.step, error)  # fmt: skip
            self._is_failing = True

    def rewrite(self, reports: Sequence[Report]) -> None:
        json_files.write_text(self._path, "".join(map(_line, reports)))


class Recorder(Observer):
    """Records every report, then passes it on to another observer."""

    def __init__(self, folder: Path, observer: Observer) -> None:
        self.checkpoints: list[Path] = []
        """The reported checkpoints, as absolute paths."""
        self._steps = _Log(folder / "metrics.jsonl", StepReport, "losses")
        self._scores = _Log(folder / "scores.jsonl", ScoreReport, "scores")
        self._previews = folder / "previews"
        self._observer = observer

    def reports(self) -> list[StepReport]:
        """The reports of all steps so far; [] if they cannot be read."""
        return self._steps.read()

    def scores(self) -> list[ScoreReport]:
        """The reports of all scores so far; [] if they cannot be read."""
        return self._scores.read()

    def rewrite(self, reports: Sequence[StepReport], scores: Sequence[ScoreReport]) -> None:
        """Replace everything recorded so far by these reports."""
        self._steps.rewrite(reports)
        self._scores.rewrite(scores)

    def previews(self) -> list[np.ndarray]:
        """The last previews, [H, W, 3] uint8 each."""
        images = []
        for path in sorted(self._previews.glob("*.png")):
            with Image.open(path) as image:
                images.append(np.array(image))
        return images

    def on_progress(self, activity: str, done: int, total: int) -> None:
        self._observer.on_progress(activity, done, total)

    def on_load(self, path: Path) -> None:
        self._observer.on_load(path)

    def on_start(self, total_steps: int) -> None:
        self._observer.on_start(total_steps)

    def on_step(self, report: StepReport) -> None:
        self._steps.add(report)
        self._observer.on_step(report)

    def on_skipped_step(self, step: int) -> None:
        self._observer.on_skipped_step(step)

    def on_score(self, report: ScoreReport) -> None:
        self._scores.add(report)
        self._observer.on_score(report)

    def wants_to_finish(self) -> bool:
        return self._observer.wants_to_finish()

    def on_preview(self, step: int, images: list[np.ndarray]) -> None:
        with json_files.warn_on_failure("the previews of this step"):
            self._replace_previews(step, images)
        self._observer.on_preview(step, images)

    def on_checkpoint(self, step: int, path: Path) -> None:
        self.checkpoints.append(path.resolve())
        self._observer.on_checkpoint(step, path)

    def _replace_previews(self, step: int, images: Sequence[np.ndarray]) -> None:
        self._previews.mkdir(exist_ok=True)
        old = set(self._previews.iterdir())
        for index, image in enumerate(images):
            path = self._previews / f"step{step:06d}_{index:03d}.png"
            with json_files.atomic_write(path) as file:
                Image.fromarray(image).save(file, format="PNG")
            old.discard(path)
        for path in old:
            path.unlink()


def _line(report: StepReport | ScoreReport) -> str:
    """A report as a line of JSON. NaN and infinity, which JSON lacks, become null: older versions
    reported them for steps that fp16 had skipped."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in dataclasses.asdict(report).items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
