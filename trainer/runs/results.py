"""The result of a finished run, and its record in the manifest."""

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
    """The result of a finished run."""

    files: Mapping[str, Path]
    """The written files: a "checkpoint", a "lora" or an "embedding", or one of the first two with
    an "embedding"."""
    steps: int
    """Optimizer steps made."""
    total_steps: int
    """Optimizer steps planned: more than `steps` if the observer wanted to finish early."""
    reports: list[StepReport]
    moved: Moved
    """For each trained part of the model: the L2 norm of the weights' change over the norm of the
    weights, and the share of the weights that changed in the file (0-1)."""
    previews: Sequence[np.ndarray]
    """The previews of the last step that had any, [H, W, 3] uint8 each."""
    scores: Sequence[ScoreReport] = ()
    """The scores of the base model (step 0) and of each scored step."""
    best: Mapping[str, Path] = field(default_factory=dict)
    """The files of the best step, by kind; empty if the last step is the best."""
    saves: Sequence[Mapping[str, Path]] = ()
    """The intermediate files of each step before the last, by kind, oldest first. Only files that
    still exist."""
    reused: bool = False
    """Whether the run was finished earlier and its result is reused."""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of the last step. Raises KeyError if the method writes none."""
        return self.files["checkpoint"]

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint of the best step; the last one if no step was better or previews were not
        scored. Raises KeyError if the method writes none."""
        return self.best.get("checkpoint") or self.checkpoint

    @property
    def best_step(self) -> int | None:
        """The step with the highest balance. None: previews were not scored, or nothing was
        learned."""
        found = best_step.best(self.scores)
        return found.step if found else None

    @property
    def lora(self) -> Path | None:
        """The trained LoRA. None: the method writes none."""
        return self.files.get("lora")

    @property
    def embedding(self) -> Path | None:
        """The trained embedding. None: the method writes none."""
        return self.files.get("embedding")


def record(result: TrainingResult, hashes: Hashes) -> dict[str, Any]:
    """A result as JSON values, its files with their hashes."""
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
    """The first file of a recorded result that is missing or has changed. None: all are
    unchanged."""
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
    """A result from its record and what the recorder kept."""
    files = {kind: Path(file["path"]) for kind, file in record["files"].items()}
    best = {kind: Path(path) for kind, path in record["best"].items() if Path(path).is_file()}
    saves = [{kind: Path(path) for kind, path in save.items()} for save in record["saves"]]
    saves = [save for save in saves if all(path.is_file() for path in save.values())]
    moved = {part: (distance, share) for part, (distance, share) in record["moved"].items()}
    steps, total_steps = record["steps"], record["total_steps"]
    logger.info("Reusing the finished run, after step %d of %d: %s", steps, total_steps,
                ", ".join(map(str, files.values())))  # fmt: skip
    return TrainingResult(
        files=files,
        steps=steps,
        total_steps=total_steps,
        reports=reports,
        moved=moved,
        previews=previews,
        scores=scores,
        best=best,
        saves=saves,
        reused=True,
    )
