"""What a finished run made, and how it is kept to be found again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation import best_step
from ..observer import ScoreReport, StepReport
from .identity import Hashes

logger = logging.getLogger(__name__)

Moved = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished run."""

    files: Mapping[str, Path]
    """What it wrote: a "checkpoint", an "embedding", or both."""
    steps: int
    """Optimizer steps made."""
    total_steps: int
    """Optimizer steps planned: more than were made, if the observer wanted to finish early."""
    reports: list[StepReport]
    moved: Moved
    """By part of the model: the length of its weights' change over their own length, and the share
    of its weights that changed in the file."""
    previews: Sequence[np.ndarray]
    """[H, W, 3] uint8, of the last step that had any."""
    scores: Sequence[ScoreReport] = ()
    """Of the steps that a judge scored, the base model's first."""
    best: Mapping[str, Path] = field(default_factory=dict)
    """The same kinds of files, of the best step where that was not the last."""
    saves: Sequence[Mapping[str, Path]] = ()
    """The same kinds of files, of each step before the last that was saved and still is there, the
    oldest first."""
    reused: bool = False
    """It was finished before, and is only found again."""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint; KeyError for a method that writes none."""
        return self.files["checkpoint"]

    @property
    def best_checkpoint(self) -> Path:
        """That of the best step, or of the last where none was better or there was no judge;
        KeyError for a method that writes none."""
        return self.best.get("checkpoint") or self.checkpoint

    @property
    def best_step(self) -> int | None:
        """The step with the highest balance; None without a judge, or where nothing was learned."""
        found = best_step.best(self.scores)
        return found.step if found else None

    @property
    def embedding(self) -> Path | None:
        """The learned embedding, if one was trained."""
        return self.files.get("embedding")


def record(result: TrainingResult, hashes: Hashes) -> dict[str, Any]:
    """A result as JSON can hold it, its files with their hashes."""
    written = {
        kind: {"path": str(path.resolve()), "sha256": hashes.sha256(path)}
        for kind, path in result.files.items()
    }
    return {
        "steps": result.steps,
        "total_steps": result.total_steps,
        "files": written,
        "best": {kind: str(path.resolve()) for kind, path in result.best.items()},
        "saves": [
            {kind: str(path.resolve()) for kind, path in save.items()} for save in result.saves
        ],
        "moved": dict(result.moved),
        "is_scored": bool(result.scores),
    }


def changed_file(record: Mapping[str, Any], hashes: Hashes) -> str | None:
    """The first of a recorded result's files that is gone or another by now."""
    for file in record["files"].values():
        try:
            if hashes.sha256(Path(file["path"])) != file["sha256"]:
                return str(file["path"])
        except (OSError, ValueError):
            return str(file["path"])
    return None


def recall(
    record: Mapping[str, Any],
    reports: list[StepReport],
    previews: Sequence[np.ndarray],
    scores: Sequence[ScoreReport],
) -> TrainingResult:
    """The result that was recorded."""
    files = {kind: Path(file["path"]) for kind, file in record["files"].items()}
    best = {kind: Path(path) for kind, path in record["best"].items() if Path(path).is_file()}
    saves = [{kind: Path(path) for kind, path in save.items()} for save in record["saves"]]
    saves = [save for save in saves if all(path.is_file() for path in save.values())]
    moved = {part: (distance, share) for part, (distance, share) in record["moved"].items()}
    steps, total_steps = record["steps"], record["total_steps"]
    logger.info("This run was finished before, after step %d of %d: %s", steps, total_steps,
                ", ".join(map(str, files.values())))  # fmt: skip
    return TrainingResult(
        files, steps, total_steps, reports, moved, previews, scores, best, saves, reused=True
    )
