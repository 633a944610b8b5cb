"""An observer for tests of sampling."""

from __future__ import annotations

from trainer.observer import Observer


class Progress(Observer):
    """Records the calls, and raises at call number `stop_at`."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.stop_at = stop_at

    def on_progress(self, activity: str, done: int, total: int) -> None:
        self.calls.append((activity, done, total))
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
