"""What pages send to the pack's routes: JSON objects.

A page of another site can send texts and forms without being asked, but no JSON. ComfyUI itself
refuses such pages only if its own address is that of this computer."""

from __future__ import annotations

import json
from typing import Any

JSON = "application/json"
NOT_JSON = "Send JSON, with the content type application/json."


async def read_object(request: Any) -> dict[str, Any] | None:
    """The object that a request sends. None: it sends something else."""
    if request.content_type != JSON:
        return None
    try:
        # Not request.json(), which fails in other ways for unknown encodings.
        found = json.loads(await request.read())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
