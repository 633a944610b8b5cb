"""Shows class images on the node that draws them, one by one, in every open page."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict

from . import host
from .folders import below_output
from .live import Throttle
from .node_view import NodeView

CLASS_EVENT = "dreambooth.class_images"
"""The websocket message with a whole view, sent to all pages."""
CLASS_UI_KEY = "dreambooth_class_images"
"""The key of the node's `ui` output that contains the view."""
CLASS_ROUTE = "/dreambooth/class_images"
MAX_VIEWS = 16
MAX_FILES = 24
"""Images that the node shows: the newest."""
STOPPED = "Stopped. Run the same again to draw the missing ones."
DIGITS = 3

State = Literal["preparing", "drawing", "finished", "stopped", "failed"]


class ClassView(TypedDict):
    """Everything that the panel shows of the class images that a node draws."""

    node: str
    """The node's id; in a subgraph it begins with the ids of the nodes around it, as in "10:3"."""
    prompt: str
    """ComfyUI's id of the queued workflow."""
    workflow: str | None
    """The id in the workflow's file. None: it was queued without one."""
    version: int
    """Higher in newer messages."""
    state: State
    done: int
    total: int
    share: float
    """From 0 to 1. Also counts what is done of images that are being drawn."""
    folder: str
    """The folder of the images below ComfyUI's output folder."""
    files: list[str]
    """Names in that folder: the newest, in the order of their seeds."""
    lines: list[str]
    """The latest warnings."""
    message: str
    """Why it ended early or failed."""


class LiveClassView(NodeView):
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
