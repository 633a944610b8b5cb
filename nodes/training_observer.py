"""Shows a training run on its node, and passes the requests of the page to it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np

from ..trainer.evaluation import best_step
from ..trainer.hardware import ON_CPU
from ..trainer.observer import ScoreReport, StepReport
from ..trainer.runs.recorder import PREVIEWS, preview_files, preview_prompts
from . import host
from .folders import below_output, menu_name
from .live import LiveView
from .run_view import Preview

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_MEMORY = 1.0
"""Asking a device for its free memory may wait for it."""

training: dict[str, TrainingObserver] = {}
"""The observer of each node that is making steps, by the node's id."""


class TrainingObserver(host.ComfyObserver):
    """Leave it as a context manager to stop accepting requests."""

    def __init__(self, view: LiveView) -> None:
        super().__init__()
        self._view = view
        self._folder: Path | None = None
        self._scores: list[ScoreReport] = []
        self._is_training = False
        self._last_memory = 0.0
        self.finish, self.preview, self.save = (threading.Event() for _ in range(3))
        """Requests: to finish after the current step, to draw previews, to save the weights."""

    def __enter__(self) -> TrainingObserver:
        return self

    def __exit__(self, *_: object) -> None:
        training.pop(self._view["node"], None)

    def show(self, text: str, *, now: bool = True) -> None:
        super().show(text, now=now)
        self._update(activity=text)

    def on_run(self, folder: Path) -> None:
        self._folder = folder
        self._update(run=folder.name, folder=below_output(folder / PREVIEWS))
        self._show_previews()

    def on_resume(self, reports: Sequence[StepReport], scores: Sequence[ScoreReport]) -> None:
        self._view.add_reports(reports)
        self._scores = list(scores)
        self._view.set_scores(scores)

    def on_start(self, total_steps: int) -> None:
        host.raise_if_stopped()
        if not self.is_toy and host.is_on_cpu():
            logger.warning("ComfyUI runs on the CPU. %s", ON_CPU)
        self._is_training = True
        training[self._view["node"]] = self
        self._show_previews()
        self._update(state="training", activity="", total=total_steps)

    def on_step(self, report: StepReport) -> None:
        self._view.add_reports([report])
        host.raise_if_stopped()
        is_last = report.step == report.total_steps
        super().show(
            f"step {report.step}/{report.total_steps}, loss {report.loss:.4f}, "
            f"{timedelta(seconds=int(report.seconds_left))} left",
            now=is_last,
        )
        self.advance("Training", report.step, report.total_steps)
        self._is_training = not is_last
        self._update(
            activity="",
            seconds_left=round(report.seconds_left, 1),
            steps_per_second=round(report.steps_per_second, 3),
            megabytes_taken=round(report.peak_megabytes),
        )
        self._show_memory()

    def on_progress(self, activity: str, done: int, total: int) -> None:
        host.raise_if_stopped()
        self.show(f"{activity} {done}/{total}", now=done == total)
        # During training the bar shows training steps, not the drawing of previews in between.
        if not self._is_training:
            self.advance(activity, done, total)

    def on_skipped_step(self, step: int) -> None:
        host.raise_if_stopped()
        self.show(f"step {step}: skipped, fp16 is adjusting its loss scale")

    def wants_to_finish(self) -> bool:
        return self.finish.is_set()

    def wants_preview(self) -> bool:
        return _take(self.preview)

    def wants_save(self) -> bool:
        return _take(self.save)

    def on_preview(self, step: int, images: list[np.ndarray]) -> None:
        assert self._folder, "on_run comes first"
        if files := preview_files(self._folder).get(step):
            self._view.add_preview(_preview(step, files))
            self._view.send()

    def on_score(self, report: ScoreReport) -> None:
        self.show(f"Scored {best_step.describe(report)}")
        self._scores = [score for score in self._scores if score.step < report.step]
        self._scores.append(report)
        self._view.set_scores(self._scores)

    def on_checkpoint(self, step: int, path: Path) -> None:
        name = menu_name(path)
        self.show(f"Wrote {name}")
        self._update(file=name)
        host.send_event("dreambooth.checkpoint", {"step": step, "name": name, "node": self.node_id})

    def on_early_end(self, message: str) -> None:
        self._update(message=message)

    def _show_previews(self) -> None:
        assert self._folder, "on_run comes first"
        found = preview_files(self._folder).items()
        self._update(previews=[_preview(step, files) for step, files in found])

    def _show_memory(self) -> None:
        if time.monotonic() - self._last_memory >= SECONDS_BETWEEN_MEMORY:
            self._last_memory = time.monotonic()
            self._update(megabytes_free=host.free_megabytes())

    def _update(self, **values: object) -> None:
        self._view.update(**values)
        self._view.send()


def _preview(step: int, files: Sequence[Path]) -> Preview:
    return Preview(
        step=step,
        stamp=max(int(file.stat().st_mtime) for file in files),
        prompts=preview_prompts(files),
        files=[file.name for file in files],
    )


def _take(request: threading.Event) -> bool:
    """Whether it was requested. Once it was taken, it no longer is."""
    is_set = request.is_set()
    request.clear()
    return is_set
