"""What a panel on a node shows. Independent of ComfyUI."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

MAX_LINES = 5


class NodeView:
    """Values that one thread changes and another one sends, with at least the keys `node`, `prompt`
    and `workflow` that identify it, `version`, `lines` and `message`."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, Any] = dict(values)

    def __getitem__(self, key: str) -> Any:
        with self._lock:
            return self._values[key]

    def update(self, **values: Any) -> None:
        with self._lock:
            self._values.update(values)

    def add_line(self, line: str) -> None:
        """Add a warning or note, unless the message says the same."""
        with self._lock:
            message, lines = self._values["message"], self._values["lines"]
            if line not in lines and not (message and message in line):
                self._values["lines"] = [*lines, line][-MAX_LINES:]

    def send(self) -> None:
        """Send what has changed to all pages."""
        raise NotImplementedError
