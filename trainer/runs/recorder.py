"""Records what a run reports in its folder: a line per step and per score, and the previews."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..observer import Observer, ScoreReport, StepReport
from ..storage import json_files
from ..storage.flush import make_folder
from ..storage.listing import matching
from ..storage.png_files import save_png

logger = logging.getLogger(__name__)

Report = TypeVar("Report", bound=StepReport | ScoreReport)
PREVIEWS = "previews"
"""The subfolder of a run's folder."""
PROMPT = "Description"
"""The PNG keyword under which a preview contains its prompt."""
_PREVIEW = re.compile(r"step(\d{6,})_\d{3}\.png")


def preview_files(folder: Path) -> dict[int, list[Path]]:
    """The previews in a run's folder by step, in the order of steps and prompts. Step 0: of the
    base model. {} if the folder cannot be read, with a warning."""
    found: dict[int, list[Path]] = {}
    try:
        paths = matching(folder / PREVIEWS, "*.png")
    except OSError as error:
        logger.warning("The previews in '%s' cannot be read: %s.", folder, error.strerror)
        return {}
    for path in paths:
        if name := _PREVIEW.fullmatch(path.name):
            found.setdefault(int(name[1]), []).append(path)
    return dict(sorted(found.items()))


def preview_prompts(paths: Sequence[Path]) -> list[str]:
    """The prompts of previews; "" for those that older versions drew, or that cannot be read."""
    prompts = []
    for path in paths:
        prompts.append("")
        with suppress(OSError, SyntaxError), Image.open(path) as image:
            prompts[-1] = str(image.info.get(PROMPT, ""))
    return prompts


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
            reports = [self._kind(**json.loads(line)) for line in lines]
            if not all(map(_has_numbers, reports)):
                raise TypeError("it holds something else than numbers")
            return reports
        except (OSError, ValueError, TypeError, RecursionError) as error:
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

    def __init__(self, folder: Path, observer: Observer, prompts: Sequence[str] = ()) -> None:
        """`prompts` are those of the previews, in order."""
        self.checkpoints: list[Path] = []
        """The reported checkpoints, as absolute paths."""
        self._steps = _Log(folder / "metrics.jsonl", StepReport, "losses")
        self._scores = _Log(folder / "scores.jsonl", ScoreReport, "scores")
        self._folder, self._observer, self._prompts = folder, observer, list(prompts)

    def reports(self) -> list[StepReport]:
        """The reports of all steps so far; [] if they cannot be read."""
        return self._steps.read()

    def scores(self) -> list[ScoreReport]:
        """The reports of all scores so far; [] if they cannot be read."""
        return self._scores.read()

    def rewrite(self, reports: Sequence[StepReport], scores: Sequence[ScoreReport]) -> None:
        """Replace what is recorded so far by these reports. Delete previews of later steps."""
        self._steps.rewrite(reports)
        self._scores.rewrite(scores)
        for step, paths in preview_files(self._folder).items():
            for path in paths if step > len(reports) else ():
                path.unlink()

    def previews(self) -> list[np.ndarray]:
        """The last previews, [H, W, 3] uint8 each. [] if there are only those of the base model, or
        if one cannot be read, with a warning."""
        steps = preview_files(self._folder)
        last = steps[max(steps)] if max(steps, default=0) > 0 else []
        try:
            return [np.array(Image.open(BytesIO(path.read_bytes()))) for path in last]
        except (OSError, SyntaxError) as error:  # Pillow's for a damaged PNG file
            logger.warning("The last previews of this run cannot be read: %s", error)
            return []

    def on_progress(self, activity: str, done: int, total: int) -> None:
        self._observer.on_progress(activity, done, total)

    def on_run(self, folder: Path) -> None:
        self._observer.on_run(folder)

    def on_load(self, path: Path) -> None:
        self._observer.on_load(path)

    def on_resume(self, reports: Sequence[StepReport], scores: Sequence[ScoreReport]) -> None:
        self._observer.on_resume(reports, scores)

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

    def wants_preview(self) -> bool:
        return self._observer.wants_preview()

    def wants_save(self) -> bool:
        return self._observer.wants_save()

    def on_preview(self, step: int, images: list[np.ndarray]) -> None:
        with json_files.warn_on_failure("the previews of this step"):
            self._save_previews(step, images)
        self._observer.on_preview(step, images)

    def on_checkpoint(self, step: int, path: Path) -> None:
        self.checkpoints.append(path.resolve())
        self._observer.on_checkpoint(step, path)

    def on_early_end(self, message: str) -> None:
        self._observer.on_early_end(message)

    def _save_previews(self, step: int, images: Sequence[np.ndarray]) -> None:
        folder = self._folder / PREVIEWS
        make_folder(folder)
        old = set(preview_files(self._folder).get(step, []))
        for index, image in enumerate(images):
            path = folder / f"step{step:06d}_{index:03d}.png"
            text = PngInfo()
            if index < len(self._prompts):
                text.add_itxt(PROMPT, self._prompts[index])
            save_png(path, Image.fromarray(image), text)
            old.discard(path)
        for path in old:
            path.unlink()


def _has_numbers(report: StepReport | ScoreReport) -> bool:
    values = dataclasses.asdict(report).values()
    numbers = [n for each in values for n in (each.values() if isinstance(each, dict) else [each])]
    return all(n is None or (type(n) in (int, float) and abs(n) < 1e300) for n in numbers)


def _line(report: StepReport | ScoreReport) -> str:
    """A report as a line of JSON. NaN and infinity, which JSON lacks, become null: older versions
    reported them for steps that fp16 had skipped."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in dataclasses.asdict(report).items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
