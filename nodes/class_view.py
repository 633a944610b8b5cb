"""What the panel on Generate Class Priors shows of images that it draws. Independent of ComfyUI.

`web/class_images.js` declares the same keys; a test compares them."""

from __future__ import annotations

from typing import Literal, TypedDict

CLASS_EVENT = "dreambooth.class_images"
"""The websocket message with a whole view, sent to all pages."""
CLASS_UI_KEY = "dreambooth_class_images"
"""The key of the node's `ui` output that contains the view."""
CLASS_ROUTE = "/dreambooth/class_images"

State = Literal["preparing", "drawing", "finished", "stopped", "failed"]


class ClassView(TypedDict):
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
