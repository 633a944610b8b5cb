"""What a run tells its observer, kept in its folder: a line per step and per score, and the last
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
    """Reports of one kind in a file of JSON lines. What cannot be written is lost, with one
    warning."""

    def __init__(self, path: Path, kind: type[Report], what: str) -> None:
        self._path, self._what = path, what
        self._kind: type[Report] = kind
        self._is_losing = False

    def read(self) -> list[Report]:
        """All so far, as far as they can be read."""
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
            self._is_losing = False
        except OSError as error:
            if not self._is_losing:
                logger.warning("Could not write the %s from step %d on into '%s': %s",
                               self._what, report.step, self._path, error)  # fmt: skip
            self._is_losing = True

    def rewrite(self, reports: Sequence[Report]) -> None:
        json_files.write_text(self._path, "".join(map(_line, reports)))


class Recorder(Observer):
    """Keeps what it hears, then passes it on."""

    def __init__(self, folder: Path, observer: Observer) -> None:
        self.checkpoints: list[Path] = []
        """Those it heard of."""
        self._steps = _Log(folder / "metrics.jsonl", StepReport, "losses")
        self._scores = _Log(folder / "scores.jsonl", ScoreReport, "scores")
        self._previews = folder / "previews"
        self._observer = observer

    def reports(self) -> list[StepReport]:
        """Of all steps so far, as far as they can be read."""
        return self._steps.read()

    def scores(self) -> list[ScoreReport]:
        """Of all scores so far, as far as they can be read."""
        return self._scores.read()

    def rewrite(self, reports: Sequence[StepReport], scores: Sequence[ScoreReport]) -> None:
        """Keep these in place of all that were kept before."""
        self._steps.rewrite(reports)
        self._scores.rewrite(scores)

    def previews(self) -> list[np.ndarray]:
        """The last ones, [H, W, 3] uint8 each."""
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
    """In JSON, which knows neither NaN nor infinity. Older versions took gradients that fp16 had
    skipped for a step's."""
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in dataclasses.asdict(report).items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"
