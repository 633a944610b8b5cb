"""A run in the terminal: progress bars, and Ctrl+C that ends the run cleanly."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import FrameType, TracebackType

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..console import plain
from ..evaluation import best_step
from ..observer import Observer, ScoreReport, StepReport
from ..processes import Terminated
from ..storage.png_files import save_png

logger = logging.getLogger(__name__)

FINISHING = (
    "Finishing after this step and saving the result. Press Ctrl+C again to stop without a result; "
    "you can resume later."
)
STOPPING_A_RUN = (
    "Stopping after this step; you can resume later. Press Ctrl+C again to stop at once and lose "
    "the steps since the last saved state."
)
STOPPING = "Stopping as soon as the current work is done. Press Ctrl+C again to stop at once."


PATIENCE = 8
"""Seconds. A process that has not noticed its signal by then waits for one that has ended."""


class _Request(Enum):
    """What Ctrl+C has requested so far."""

    NOTHING = "continue"
    FINISH = "make this step the last one"
    STOP = "raise KeyboardInterrupt at the next report"


class _CtrlC:
    """Turns each Ctrl+C into the next request: FINISH, which is skipped if no steps are being made,
    then STOP. The one after that stops at once."""

    def __init__(self) -> None:
        self.request = _Request.NOTHING
        self.is_training = False

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.request is _Request.STOP:
            raise KeyboardInterrupt
        if self.is_training and self.request is _Request.NOTHING:
            self.request, text = _Request.FINISH, FINISHING
        else:
            self.request = _Request.STOP
            text = STOPPING_A_RUN if self.is_training else STOPPING
        # Not print: the signal may have interrupted a print, which is not reentrant.
        os.write(2, f"\n{text}\n".encode())

    def stop(self) -> None:
        self.request = _Request.STOP

    def stop_if_requested(self) -> None:
        if self.request is _Request.STOP:
            raise KeyboardInterrupt

    def reset(self, *, is_training: bool = False) -> None:
        self.request, self.is_training = _Request.NOTHING, is_training


_ctrl_c = _CtrlC()


@contextmanager
def stopping_between_steps() -> Iterator[None]:
    """While it is active, Ctrl+C ends the work cleanly, and says how."""
    _ctrl_c.reset()
    previous = signal.signal(signal.SIGINT, _ctrl_c.on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        _ctrl_c.reset()


@contextmanager
def stopping_when_told() -> Iterator[None]:
    """While it is active in one of several processes, Ctrl+C and the signal by which `torchrun`
    ends a process stop the run: after the current step, so that it can be resumed, or at once if no
    steps are being made, or if the process waits for one that has ended. Then raises
    KeyboardInterrupt or `Terminated`."""
    noticed, numbers = threading.Event(), (signal.SIGINT, signal.SIGTERM)
    seen = set()

    def on_signal(number: int, frame: FrameType | None) -> None:
        noticed.set()
        seen.add(number)
        _ctrl_c.stop()
        if not _ctrl_c.is_training:  # there is nothing to save
            raise KeyboardInterrupt

    with _ending_unless(noticed):
        former = {number: signal.signal(number, on_signal) for number in numbers}
        try:
            yield
        except KeyboardInterrupt as interrupt:
            if signal.SIGTERM in seen:
                raise Terminated from interrupt
            raise
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


@contextmanager
def _ending_unless(noticed: threading.Event) -> Iterator[None]:
    """End the process if it has not noticed a signal in time. Python calls handlers only between
    two of its own instructions, but it writes to this pipe at once."""
    if sys.platform == "win32":  # its pipes cannot do this
        yield
        return
    read, write = os.pipe()

    def watch() -> None:
        if os.read(read, 1) and not noticed.wait(PATIENCE):
            os._exit(1)

    os.set_blocking(write, False)
    threading.Thread(target=watch, daemon=True).start()
    signal.set_wakeup_fd(write)
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        os.close(write)


class TerminalObserver(Observer):
    """Shows a progress bar per activity, and saves previews if a folder is given."""

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
        _ctrl_c.reset()
        self._close()

    def on_progress(self, activity: str, done: int, total: int) -> None:
        self._advance(activity, done, total)

    def on_start(self, total_steps: int) -> None:
        _ctrl_c.stop_if_requested()
        _ctrl_c.reset(is_training=True)

    def on_step(self, report: StepReport) -> None:
        bar = self._advance("Training", report.step, report.total_steps)
        bar.set_postfix_str(
            f"loss {report.loss:.4f}, {report.steps_per_second:.2f} steps/s, "
            f"{report.seconds_left:.0f} s left, {report.peak_megabytes:.0f} MB"
            + (f", {report.skipped_steps} skipped" if report.skipped_steps else "")
        )
        self._is_last_step = report.step == report.total_steps

    def on_skipped_step(self, step: int) -> None:
        _ctrl_c.stop_if_requested()

    def wants_to_finish(self) -> bool:
        _ctrl_c.stop_if_requested()
        is_finishing = _ctrl_c.request is not _Request.NOTHING
        if is_finishing or self._is_last_step:
            _ctrl_c.reset()  # no steps follow, so the next Ctrl+C stops
        return is_finishing

    def on_preview(self, step: int, images: list[np.ndarray]) -> None:
        if self._previews is None:
            return
        try:
            for index, image in enumerate(images):
                save_png(self._previews / f"step{step:06d}_{index}.png", Image.fromarray(image))
        except OSError as error:  # such as a full disk: the run continues
            logger.warning("Could not save the previews of this step: %s", error)

    def on_score(self, report: ScoreReport) -> None:
        tqdm.write(plain(f"Scored {best_step.describe(report)}"))

    def on_checkpoint(self, step: int, path: Path) -> None:
        tqdm.write(plain(f"Saved {path}"))

    def _advance(self, activity: str, done: int, total: int) -> tqdm[None]:
        _ctrl_c.stop_if_requested()
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
