"""What a run tells its observer, kept in its folder: a line per step, and the last previews."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from . import records
from .observer import Observer, StepReport

logger = logging.getLogger(__name__)


class Recorder(Observer):
    """Keeps what it hears, then passes it on."""

    def __init__(self, folder: Path, observer: Observer) -> None:
        self.checkpoints: list[Path] = []
        """Those it heard of."""
        self._metrics, self._previews = folder / "metrics.jsonl", folder / "previews"
        self._observer = observer
        self._is_losing = False

    def reports(self) -> list[StepReport]:
        """Of all steps so far, as far as they can be read."""
        try:
            lines = self._metrics.read_text("utf-8").splitlines()
            return [StepReport(**json.loads(line)) for line in lines]
        except (OSError, ValueError, TypeError) as error:
            logger.warning("The losses of this run cannot be read: %s", error)
            return []

    def rewrite(self, reports: Sequence[StepReport]) -> None:
        """Keep these in place of all that were kept before."""
        records.write_text(self._metrics, "".join(map(_line, reports)))

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
        try:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(_line(report))
            self._is_losing = False
        except OSError as error:
            if not self._is_losing:
                logger.warning("Could not write the losses from step %d on into '%s': %s",
                               report.step, self._metrics, error)  # fmt: skip
            self._is_losing = True
        self._observer.on_step(report)

    def wants_to_finish(self) -> bool:
        return self._observer.wants_to_finish()

    def on_preview(self, step: int, images: list[np.ndarray]) -> None:
        with records.surviving("the previews of this step"):
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
            with records.replacing(path) as file:
                Image.fromarray(image).save(file, format="PNG")
            old.discard(path)
        for path in old:
            path.unlink()


def _line(report: StepReport) -> str:
    return json.dumps(dataclasses.asdict(report)) + "\n"
