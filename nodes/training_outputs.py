"""The outputs that the two training nodes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer.evaluation.plots import loss_curve
from ..trainer.loop import TrainingResult
from . import host, live
from .images import to_batch
from .models import open_source
from .run_view import UI_KEY
from .sockets import ModelSocket, ModelSource, SavesSocket

NO_PREVIEWS = (
    "{} drew no previews. Connect Preview Settings, with 'every' no larger than the number of "
    "steps, and set on_existing to retrain, because this run is finished."
)


def run_outputs() -> list[io.Output]:
    """The outputs of every run after its model and file name."""
    return [
        io.Image.Output(
            "loss_curve",
            display_name="loss curve",
            tooltip="The loss over the steps and, with a judge in Preview Settings, the scores "
            "for subject, prompts and class. The loss is noisy and hardly falls: look at the "
            "previews instead. Connect to Preview Image or Save Image.",
        ),
        io.Image.Output(
            "previews",
            display_name="previews",
            tooltip="The last previews, one for each prompt of Preview Settings. Connect to "
            "Preview Image.",
        ),
        SavesSocket.Output(
            "saves",
            display_name="saves",
            tooltip="All stages of the run, for Compare Settings: the intermediate saves that are "
            "kept, then the result.",
        ),
        ModelSocket.Output(
            "best_source",
            display_name="best step",
            tooltip="The model of the step with the best scores, if Preview Settings has a judge; "
            "otherwise, or if no step was better, the same as model source. Connect to Sample with "
            "Scheduler or Use Trained Model.",
        ),
    ]


def node_output(
    result: TrainingResult,
    source: ModelSource,
    file_name: str,
    display_name: str,
    *further: Any,
    name: Any = None,
) -> io.NodeOutput:
    """The model, the name of its file, `run_outputs`, and further outputs; the node shows its view.
    `source`: what the run trained. `name`: the output in place of `file_name`, if that belongs to
    another one."""
    curve = to_batch([loss_curve(result.reports, result.scores)])
    saves = tuple(source_of(files, source) for files in (*result.saves, result.files))
    previews = (
        to_batch(result.previews)
        if result.previews
        else host.no_result(NO_PREVIEWS.format(display_name))
    )
    view = live.current()
    view.update(
        state="found" if result.reused else "finished",
        activity="",
        seconds_left=None,
        file=file_name,
    )
    return io.NodeOutput(
        source_of(result.files, source),
        file_name if name is None else name,
        curve,
        previews,
        saves,
        source_of(result.best or result.files, source),
        *further,
        ui={UI_KEY: [view.whole()]},
    )


def source_of(files: Mapping[str, Path], source: ModelSource) -> ModelSource:
    """The model in the files of a run that started from `source`."""
    embedding = files.get("embedding", source.embedding)
    if "checkpoint" in files:
        return open_source(files["checkpoint"], embedding)
    if "lora" in files:
        source = source.with_lora(files["lora"])
    return replace(source, embedding=embedding)
