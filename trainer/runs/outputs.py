"""The files that a run writes, and how far their weights moved. `checkpoint.py` writes a single
file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from ..checkpoint import CheckpointWriter
from ..evaluation import best_step
from ..families.constants import without_prediction
from ..methods.base import OutputFile
from ..storage import json_files
from ..training.session import Session
from ..weights import FileTensor
from . import disk_space
from .metadata import describe_progress, without_private
from .weight_change import WeightChange, weight_change


class Outputs:
    """Writes the files of a run from the current weights of its session."""

    def __init__(
        self,
        session: Session,
        description: Mapping[str, str],
        started: datetime,
        intermediate: Sequence[Path],
        *,
        is_resumed: bool = False,
    ) -> None:
        """`intermediate` are the intermediate files that earlier sessions of the run wrote, oldest
        first. `is_resumed`: there were earlier sessions."""
        self._session, self._description, self._started = session, description, started
        self._writers = [
            (
                file,
                CheckpointWriter(file.original, file.output, intermediate, is_resumed=is_resumed),
            )
            for file in session.trainable.files
        ]

    def save_step(self, *, is_last: bool = False) -> dict[str, Path]:
        """Write intermediate files. Return their paths by kind, or {} with a warning if the disk is
        full. `is_last`: the run ends early, so they may use the space of its result."""
        step = len(self._session.reports)
        with json_files.warn_on_failure(f"the weights of step {step}"), self._session.averaged():
            if not is_last:
                disk_space.require_for_step(self._session)
            return {
                file.kind: writer.save_step(step, self._trained(file), self._metadata(file))
                for file, writer in self._writers
            }
        return {}

    def save_best(self) -> dict[str, Path]:
        """Write the weights as the best so far, replacing the previous best. Return the paths by
        kind, or {} with a warning if the disk is full."""
        step = len(self._session.reports)
        with (
            json_files.warn_on_failure(f"the best weights so far, of step {step}"),
            self._session.averaged(),
        ):
            disk_space.require_for_step(self._session)
            return {
                file.kind: writer.save_best(step, self._trained(file), self._metadata(file))
                for file, writer in self._writers
            }
        return {}

    def publish_best(self) -> dict[str, Path]:
        """Give the files of the best step their final names. Return their paths by kind, or {} if
        the last step is the best or previews were not scored."""
        top, last = best_step.best(self._session.scores), len(self._session.reports)
        step = top.step if top and top.step < last else None
        with json_files.warn_on_failure("the best step's file"):
            found = {
                file.kind: writer.publish_best(step, self._metadata(file, step))
                for file, writer in self._writers
            }
            return {kind: path for kind, path in found.items() if path}
        return {}

    def saves(self) -> list[dict[str, Path]]:
        """The intermediate files of each saved step before the last, by kind, oldest first. Steps
        with a missing file are left out."""
        kinds = {file.kind: writer.intermediate for file, writer in self._writers}
        steps = set.intersection(*map(set, kinds.values())) - {len(self._session.reports)}
        return [{kind: paths[step] for kind, paths in kinds.items()} for step in sorted(steps)]

    def save_final(self) -> dict[str, Path]:
        """Write the run's result. Return the paths by kind."""
        with self._session.averaged():
            return {
                file.kind: writer.save_final(self._trained(file), self._metadata(file))
                for file, writer in self._writers
            }

    def moved(self) -> dict[str, WeightChange]:
        """How far the weights of each part moved."""
        with self._session.averaged():
            return {
                part.name: weight_change(writer, self._session.trainable.part_tensors(part))
                for file, writer in self._writers
                for part in file.parts
            }

    def _trained(self, file: OutputFile) -> dict[str, FileTensor]:
        return self._session.trainable.file_tensors(file)

    def _metadata(self, file: OutputFile, step: int | None = None) -> dict[str, str]:
        """The original file's metadata, overridden by ours, which says what the model predicts.
        Private keys are removed if configured. `step`: that of the weights; None: the last one."""
        progress = describe_progress(self._session.reports[:step], self._started)
        kept = without_private(file.original.metadata, file.output)
        if file.kind == "checkpoint":
            kept = without_prediction(kept)
        return {**kept, **self._description, **file.metadata, **progress}
