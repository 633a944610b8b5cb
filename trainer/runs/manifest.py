"""manifest.json in a run's folder: the run's definition, its status and its result."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..settings.config import TrainingConfig
from ..settings.values import as_json
from ..storage import json_files
from ..storage.listing import matching
from ..storage.versions import versions
from . import numerics
from .identity import Definition
from .manifest_check import FINISHED, UNFINISHED, fault
from .numerics import NUMERICS_VERSION

MANIFEST = "manifest.json"
STATES = "states"
"""Names inside a run's folder."""

logger = logging.getLogger(__name__)

Content = dict[str, Any]


class Manifest:
    """The manifest of one run. Every change is written to the file at once."""

    def __init__(self, folder: Path, config: TrainingConfig, definition: Definition) -> None:
        """`config` and `definition` are written if there is no manifest yet."""
        self.folder = folder
        self._config, self._definition = config, definition
        self._content: Content = {}
        self.is_new = True
        """Whether the run is only started now."""

    def open(self) -> None:
        """Read the file, or write a new one if there is none or it is damaged."""
        self._content = read(self.folder, whole=True)
        self.is_new = not self._content
        if self.is_new:
            self._update({
                "identity": self.folder.name,
                "status": UNFINISHED,
                "started": _now(),
                "config": as_json(self._config),
                "definition": dict(self._definition.facts),
                numerics.KEY: NUMERICS_VERSION,
                "versions": versions(),
                "intermediate": [],
            })  # fmt: skip

    @property
    def started(self) -> datetime:
        """When the run was started, with its time zone."""
        return datetime.fromisoformat(self._content["started"])

    @property
    def intermediate(self) -> list[Path]:
        """Intermediate checkpoints of earlier sessions, oldest first."""
        return [Path(path) for path in self._content["intermediate"]]

    @property
    def numerics(self) -> int:
        """The numerics version of the code that made the run's first step."""
        return numerics_of(self._content)

    @property
    def result(self) -> Content | None:
        """The record of a finished run's result, as `results.record` makes it. None: unfinished."""
        return self._content["result"] if self._content["status"] == FINISHED else None

    def note_numerics(self, version: int) -> None:
        self._update({numerics.KEY: version})

    def note_intermediate(self, paths: Iterable[Path]) -> None:
        """Remember these intermediate checkpoints, except those that no longer exist."""
        self._update({"intermediate": [str(path) for path in paths if path.exists()]})

    @property
    def keeps_state(self) -> bool:
        """Whether a finished run has a state to continue from. Also True if an older version wrote
        the manifest, which does not say."""
        return bool(self._content.get("keeps_state", True))

    def finish(self, result: Mapping[str, Any], *, keeps_state: bool) -> None:
        self._update({"status": FINISHED, "result": result, "keeps_state": keeps_state})

    def reopen(self) -> None:
        """Mark a finished run as unfinished, to be resumed."""
        self._update({"status": UNFINISHED, "result": None})

    def restart(self) -> None:
        """Mark a finished run as unfinished, to be trained from the start."""
        self.is_new = True
        self._update({"status": UNFINISHED, "started": _now(), "result": None})

    def _update(self, content: Mapping[str, Any]) -> None:
        self._content.update(content)
        json_files.write(self.folder / MANIFEST, self._content)


def read(folder: Path, *, whole: bool = False) -> Content:
    """The content of the manifest in a run's folder, or, with a warning, {} if it is damaged. With
    `whole`, it is also damaged if it lacks something that a run needs."""
    content = json_files.read(folder / MANIFEST)
    if content and (key := fault(content, whole=whole)):
        logger.warning("'%s' has no valid %s. It is treated as missing.", folder / MANIFEST, key)
        return {}
    return content


def read_all(runs: Path) -> Iterator[tuple[Path, Content]]:
    """The folder of each run in `runs` and the content of its manifest, {} if it is damaged."""
    for folder in matching(runs):
        if (folder / MANIFEST).is_file():
            yield folder, read(folder)


def definition_of(content: Content) -> Content:
    """The facts that define a run."""
    facts: Content = content.get("definition", {})
    return facts


def numerics_of(content: Content) -> int:
    """The numerics version of a run; 0 if it is older than the versioning."""
    return int(content.get(numerics.KEY, 0))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
