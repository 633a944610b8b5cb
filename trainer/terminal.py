"""A run as someone at a terminal sees it: progress bars, and a Ctrl+C that ends it cleanly."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

import numpy as np
from PIL import Image
from tqdm import tqdm

from .observer import Observer, StepReport

logger = logging.getLogger(__name__)

_stop_asked = False


@contextmanager
def stopping_between_steps() -> Iterator[None]:
    """Inside, the first Ctrl+C ends the work at the next step's end, the second at once."""

    def ask(signum: int, frame: FrameType | None) -> None:
        global _stop_asked
        if _stop_asked:
            raise KeyboardInterrupt
        _stop_asked = True

    global _stop_asked
    _stop_asked = False
    previous = signal.signal(signal.SIGINT, ask)
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

    def __enter__(self) -> TerminalObserver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def on_progress(self, activity: str, done: int, total: int) -> None:
        self._advance(activity, done, total)

    def on_step(self, report: StepReport) -> None:
        bar = self._advance("Training", report.step, report.total_steps)
        bar.set_postfix_str(
            f"loss {report.loss:.4f}, {report.steps_per_second:.2f} steps/s, "
            f"{report.seconds_left:.0f} s left, {report.peak_megabytes:.0f} MB"
        )

    def on_preview(self, step: int, images: list[np.ndarray]) -> None:
        if self._previews is None:
            return
        self._previews.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images):
            Image.fromarray(image).save(self._previews / f"step{step:06d}_{index}.png")

    def on_checkpoint(self, step: int, path: Path) -> None:
        tqdm.write(f"Saved {path}")

    def _advance(self, activity: str, done: int, total: int) -> tqdm[None]:
        if _stop_asked:
            raise KeyboardInterrupt
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
