"""Shows class images on the node that draws them, one by one, in every open page."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

from . import host
from .class_view import CLASS_EVENT, ClassView
from .folders import below_output
from .live import Throttle
from .node_view import NodeView

MAX_VIEWS = 16
MAX_FILES = 24
"""Images that the node shows: the newest."""
STOPPED = "Stopped. Run the same again to draw the missing ones."
DIGITS = 3


class LiveClassView(NodeView):
    """The values of a `ClassView`, sent to all pages when they change."""

    def __init__(self, node: str, prompt: str, workflow: str | None) -> None:
        values = ClassView(
            node=node, prompt=prompt, workflow=workflow, version=0, state="preparing", done=0,
            total=0, share=0.0, folder="", files=[], lines=[], message="",
        )  # fmt: skip
        super().__init__(values)
        self._throttle = Throttle(lambda: host.send_event(CLASS_EVENT, self.whole()))
        _views.append(self)

    def send(self) -> None:
        self._throttle.ask()

    def whole(self) -> ClassView:
        with self._lock:
            self._values["version"] += 1
            return ClassView(**self._values)  # type: ignore[typeddict-item]


_views: deque[LiveClassView] = deque(maxlen=MAX_VIEWS)


def latest() -> list[ClassView]:
    """What the last nodes that drew class images showed, the newest last."""
    return [view.whole() for view in _views]


class ClassImagesObserver(host.ComfyObserver):
    def __init__(self, view: LiveClassView) -> None:
        super().__init__()
        self._view = view
        self._num_shown = -1

    def on_progress(self, activity: str, done: int, total: int) -> None:
        host.raise_if_stopped()
        self.show(f"{activity} {done}/{total}", now=done != self._num_shown)
        self._num_shown = done
        self.advance(activity, done, total)

    def on_class_images(self, files: Sequence[Path], total: int, share: float) -> None:
        if files:
            self._view.update(folder=below_output(files[0].parent))
        self._view.update(
            state="drawing",
            done=len(files),
            total=total,
            share=round(share, DIGITS),
            files=[file.name for file in files[-MAX_FILES:]],
        )
        self._view.send()
