"""Shows each run on its training node in every open page, and keeps what the last runs showed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from comfy_api.latest import io

from . import host
from .run_view import EVENT, RunView, View

SECONDS_BETWEEN_EVENTS = 0.5
MAX_VIEWS = 16
STOPPED = "Stopped before the first step. Run the same again to train."

_views: deque[LiveView] = deque(maxlen=MAX_VIEWS)


class LiveView(RunView):
    """A view whose changes are sent to all pages, at most twice a second."""

    def __init__(self, node: str, prompt: str, workflow: str | None) -> None:
        super().__init__(node, prompt, workflow)
        self._last_sent = 0.0
        self._is_scheduled = False
        _views.append(self)

    def send(self) -> None:
        """Send what has changed as soon as allowed. Returns at once."""
        if not self._is_scheduled:
            self._is_scheduled = True
            waited = time.monotonic() - self._last_sent
            host.call_later(max(0.0, SECONDS_BETWEEN_EVENTS - waited), self._send)

    def _send(self) -> None:
        self._last_sent, self._is_scheduled = time.monotonic(), False
        host.send_event(EVENT, self.changes())


def latest() -> list[View]:
    """What the last runs showed, the newest last."""
    return [view.whole() for view in _views]


_current: ContextVar[LiveView | None] = ContextVar("live_view", default=None)


def current() -> LiveView:
    """The view of the training node that is executing."""
    view = _current.get()
    assert view, "only in functions decorated with `shown`"
    return view


def shown(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the `execute` of a training node: its view is shown from the beginning, and says at
    the end why it ended."""

    @wraps(execute)
    def run(cls: type[io.ComfyNode], **inputs: Any) -> Any:
        with _showing(_workflow_id(cls.hidden.extra_pnginfo)):
            return execute(cls, **inputs)

    return run


@contextmanager
def _showing(workflow: str | None) -> Iterator[None]:
    node, prompt = host.executing_node()
    view = LiveView(node, prompt, workflow)
    token = _current.set(view)
    try:
        with host.listening_to_lines(view.add_line):
            view.send()
            yield
    except Exception as error:
        advice = view["message"]
        message = str(error) or type(error).__name__
        view.update(state="failed", message=f"{message}\n{advice}".strip())
        raise
    except BaseException:  # ComfyUI's stop button
        view.update(state="stopped", message=view["message"] or STOPPED)
        raise
    finally:
        _current.reset(token)
        view.update(activity="", seconds_left=None)
        view.send()


def _workflow_id(extra_pnginfo: Any) -> str | None:
    workflow = extra_pnginfo.get("workflow") if isinstance(extra_pnginfo, Mapping) else None
    found = workflow.get("id") if isinstance(workflow, Mapping) else None
    return str(found) if found else None
