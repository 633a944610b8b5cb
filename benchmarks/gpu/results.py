"""The measurements of each card, in a JSON file and on a page beside it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from trainer.storage import json_files

from . import page

JSON, PAGE = "gpu.json", "gpu.md"


class Results:
    """One card's part of the file. It is written at every change; other cards do not change."""

    def __init__(self, folder: Path, facts: Mapping[str, str], *, keeps_others: bool) -> None:
        """`facts`: the card's name under "card", and the installed versions. With `keeps_others`,
        earlier stages of the card are kept if they have the same facts."""
        self._folder = folder
        self._cards = read(folder)
        card = self._cards.setdefault(facts["card"], {"facts": {}, "stages": {}})
        if not keeps_others or card["facts"] != facts:
            card.update(facts=dict(facts), stages={})
        self._stages: dict[str, Any] = card["stages"]
        self._stage: dict[str, Any] = {}

    def begin(self, name: str, kind: str, what: str) -> None:
        """Start a stage. Following rows belong to it, and its earlier rows are removed."""
        self._stage = self._stages[name] = {
            "kind": kind, "what": what, "date": date.today().isoformat(), "seconds": 0.0,
            "status": "unfinished", "reason": "it was interrupted", "rows": [],
        }  # fmt: skip
        self._write()

    def add(self, row: Mapping[str, Any]) -> None:
        self._stage["rows"].append(dict(row))
        self._write()

    def end(self, status: str, reason: str, seconds: float) -> None:
        """End the stage. `status`: "done", "unfinished", "left out" or "failed"."""
        self._stage.update(status=status, reason=reason, seconds=round(seconds, 1))
        self._write()

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the current stage."""
        return list(self._stage["rows"])

    def _write(self) -> None:
        json_files.write(self._folder / JSON, self._cards)
        json_files.write_text(self._folder / PAGE, page.to_text(self._cards))


def read(folder: Path) -> dict[str, Any]:
    """The facts and stages of each card. Empty if nothing was measured."""
    return json_files.read(folder / JSON)
