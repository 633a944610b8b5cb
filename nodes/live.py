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
from .errors import reword
from .node_view import NodeView
from .run_view import EVENT, RunView, View

SECONDS_BETWEEN_EVENTS = 0.5
MAX_VIEWS = 16
STOPPED = "Stopped before the first step. Run the same again to train."

_views: deque[LiveView] = deque(maxlen=MAX_VIEWS)


class Throttle:
    """Calls a function in the server's thread, at most twice a second."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._last_call = 0.0
        self._is_scheduled = False

    def ask(self) -> None:
        """Have the function called as soon as allowed. Returns at once."""
        if not self._is_scheduled:
            self._is_scheduled = True
            waited = time.monotonic() - self._last_call
            host.call_later(max(0.0, SECONDS_BETWEEN_EVENTS - waited), self._run)

    def _run(self) -> None:
        self._last_call, self._is_scheduled = time.monotonic(), False
        self._call()


class LiveView(RunView):
    """A view whose changes are sent to all pages."""

    def __init__(self, node: str, prompt: str, workflow: str | None) -> None:
        super().__init__(node, prompt, workflow)
        self._throttle = Throttle(lambda: host.send_event(EVENT, self.changes()))
        _views.append(self)

    def send(self) -> None:
        self._throttle.ask()


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
        view = LiveView(*host.executing_node(), workflow_id(cls))
        token = _current.set(view)
        try:
            with showing(view, stopped=STOPPED):
                return execute(cls, **inputs)
        finally:
            _current.reset(token)
            view.update(activity="", seconds_left=None)
            view.send()

    return run


@contextmanager
def showing(view: NodeView, *, stopped: str) -> Iterator[None]:
    """Show warnings that are logged inside, and at the end why it ended. `stopped`: the message
    when it was stopped and the view has none."""
    try:
        with host.listening_to_lines(view.add_line):
            view.send()
            yield
    except Exception as error:
        advice = view["message"]
        message = reword(str(error)) or type(error).__name__
        view.update(state="failed", message=f"{message}\n{advice}".strip())
        raise
    except BaseException:  # ComfyUI's stop button
        view.update(state="stopped", message=view["message"] or stopped)
        raise
    finally:
        view.send()


def own_inputs(node: type[io.ComfyNode]) -> Mapping[str, Any]:
    """The inputs of the training node that is executing, as the page sent them: values, or links
    to outputs of other nodes."""
    found: Mapping[str, Any] = _sent_nodes(node).get(current()["node"], {}).get("inputs", {})
    return found


def is_connected(node: type[io.ComfyNode], output: int) -> bool:
    """Whether another node uses an output of the training node that is executing."""
    link = [current()["node"], output]
    return any(link in each.get("inputs", {}).values() for each in _sent_nodes(node).values())


def _sent_nodes(node: type[io.ComfyNode]) -> Mapping[str, Any]:
    """The nodes of the queued workflow by their ids."""
    return node.hidden.prompt or {}


def workflow_id(node: type[io.ComfyNode]) -> str | None:
    """The id in the file of the workflow that is executing, if it has one."""
    extra = node.hidden.extra_pnginfo
    workflow = extra.get("workflow") if isinstance(extra, Mapping) else None
    found = workflow.get("id") if isinstance(workflow, Mapping) else None
    return str(found) if found else None
