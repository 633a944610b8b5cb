"""The HTTP routes through which pages watch and steer training."""

from __future__ import annotations

from typing import Any

from ..host_version import FINISH_ROUTES, warn_of_older_copy
from . import host, live
from .json_requests import read_object
from .run_view import LIVE_ROUTE, PREVIEW_ROUTE, SAVE_ROUTE
from .training_observer import training

NOT_TRAINING = (
    'No training is running on this node. Send the id of a node that is training: {"node": "3"}.'
)


async def _live(request: Any) -> Any:
    """What the last runs show."""
    return host.json_answer({"views": live.latest()})


async def _finish(request: Any) -> Any:
    """Finish a node's run after its current step. The request's body is {"node": "3"}."""
    return await _set(request, "finish")


async def _preview(request: Any) -> Any:
    """Draw the previews of a node's run after its current step."""
    return await _set(request, "preview")


async def _save(request: Any) -> Any:
    """Save the weights of a node's run after its current step."""
    return await _set(request, "save")


async def _set(request: Any, name: str) -> Any:
    values = await read_object(request) or {}
    asked = training.get(str(values.get("node")))
    if not asked:
        return host.json_answer({"error": NOT_TRAINING}, status=404)
    getattr(asked, name).set()
    return host.json_answer({"node": values["node"]})


def add_routes() -> None:
    """Called once, when ComfyUI starts."""
    for path in FINISH_ROUTES:
        host.add_route("POST", path, _finish)
    host.add_route("POST", PREVIEW_ROUTE, _preview)
    host.add_route("POST", SAVE_ROUTE, _save)
    host.add_route("GET", LIVE_ROUTE, _live)
    host.call_at_startup(warn_of_older_copy)
