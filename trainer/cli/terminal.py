"""A run as someone at a terminal sees it: progress bars, and a Ctrl+C that ends it cleanly."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..evaluation import best_step
from ..observer import Observer, ScoreReport, StepReport

logger = logging.getLogger(__name__)

FINISHING = (
    "Finishing with this step: what was learned so far is the result. Ctrl+C again stops without "
    "one, to be gone on with later."
)
STOPPING_A_RUN = (
    "Stopping after this step, to be gone on with later. Ctrl+C again stops at once, and loses the "
    "steps since the last state."
)
STOPPING = "Stopping once what is being done is done. Ctrl+C again stops at once."


class _Presses:
    """How often Ctrl+C was pressed. While steps are made the first press finishes the run, and the
    others do what they do elsewhere: one stops at the next occasion, one more at once."""

    def __init__(self) -> None:
        self.count = 0
        self.is_training = False

    def add(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1 + self.is_training:
            raise KeyboardInterrupt
        texts = [FINISHING, STOPPING_A_RUN] if self.is_training else [STOPPING]
        # Not by print, which may be at work just now and cannot be entered twice.
        os.write(2, f"\n{texts[self.count - 1]}\n".encode())

    def stop_if_asked(self) -> None:
        if self.count > self.is_training:
            raise KeyboardInterrupt

    def begin(self, *, training: bool = False) -> None:
        self.count, self.is_training = 0, training


_presses = _Presses()


@contextmanager
def stopping_between_steps() -> Iterator[None]:
    """Inside, Ctrl+C ends the work cleanly, as its first press tells."""
    _presses.begin()
    previous = signal.signal(signal.SIGINT, _presses.add)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class TerminalObserver(Observer):
    """One bar per activity; previews into a folder, if one is given."""

    def __init__(self, previews: Path | None = None) -> None:
        self._previews = previews
        self._bar: tqdm[None] | None = None
        self._activity = ""
        self._is_last_step = False

    def __enter__(self) -> TerminalObserver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _presses.begin()
        self._close()

    def on_progress(self, activity: str, done: int, total: int) -> None:
        self._advance(activity, done, total)

    def on_start(self, total_steps: int) -> None:
        _presses.stop_if_asked()
        _presses.begin(training=True)

    def on_step(self, report: StepReport) -> None:
        bar = self._advance("Training", report.step, report.total_steps)
        bar.set_postfix_str(
            f"loss {report.loss:.4f}, {report.steps_per_second:.2f} steps/s, "
            f"{report.seconds_left:.0f} s left, {report.peak_megabytes:.0f} MB"
            + (f", {report.skipped_steps} skipped" if report.skipped_steps else "")
        )
        self._is_last_step = report.step == report.total_steps

    def on_skipped_step(self, step: int) -> None:
        _presses.stop_if_asked()

    def wants_to_finish(self) -> bool:
        finishing = _presses.count > 0
        if finishing or self._is_last_step:
            _presses.begin()
        return finishing

    def on_preview(self, step: int, images: list[np.ndarray]) -> None:
        if self._previews is None:
            return
        try:
            self._previews.mkdir(parents=True, exist_ok=True)
            for index, image in enumerate(images):
                Image.fromarray(image).save(self._previews / f"step{step:06d}_{index}.png")
        except OSError as error:  # such as a full disk, which need not end the run
            logger.warning("Could not save the previews of this step: %s", error)

    def on_score(self, report: ScoreReport) -> None:
        tqdm.write(f"Scored {best_step.describe(report)}")

    def on_checkpoint(self, step: int, path: Path) -> None:
        tqdm.write(f"Saved {path}")

    def _advance(self, activity: str, done: int, total: int) -> tqdm[None]:
        _presses.stop_if_asked()
        if self._bar is None or activity != self._activity or total != self._bar.total:
            self._close()
            self._bar = tqdm(
                total=total, desc=activity, bar_format="{desc} {n}/{total} |{bar}|{postfix}"
            )
            self._activity = activity
        self._bar.update(done - self._bar.n)
        return self._bar

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
