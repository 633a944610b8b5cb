"""What the two training nodes share: their inputs, and a run inside ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from typing import Any, get_args

from comfy_api.latest import io

from ..trainer.evaluation import encoders
from ..trainer.loop import TrainingResult, train
from ..trainer.methods.base import Method
from ..trainer.runs.run import OnExisting
from ..trainer.settings.config import DatasetConfig, PriorConfig, TrainingConfig
from ..trainer.storage.names import dated
from . import folders, host, live
from .sockets import (
    DatasetSocket,
    ModelSocket,
    ModelSource,
    OptimizerSocket,
    PreviewPlan,
    PreviewSocket,
    TrainingSettings,
)
from .training_observer import TrainingObserver
from .widgets import DEFAULTS, seed_input, widget

ON_EXISTING = get_args(OnExisting)
ENDS_NAME = set(" ,()[]<>")
"""Characters that end the name of an embedding in ComfyUI's own prompts."""


# --- The run ------------------------------------------------------------------------------------


def run_config(
    source: ModelSource,
    dataset: DatasetConfig,
    preset: Mapping[str, Any],
    *,
    optimizer_settings: TrainingSettings | None,
    preview_settings: PreviewPlan | None,
    output: Mapping[str, Any],
    name: str,
    seed: int,
    save_every: int,
    prior: PriorConfig | None = None,
    keep_saves: int = DEFAULTS.output.keep,
) -> TrainingConfig:
    """The run that the inputs of a training node describe. `preset` holds the values of the widgets
    below the preset; `output` adds settings of `OutputConfig`. Raises ValueError for values that do
    not go together."""
    settings = optimizer_settings or TrainingSettings()
    watched = preview_settings or PreviewPlan()
    config = DEFAULTS.replace(
        {
            "base": source.path,
            "embedding": source.embedding,
            **asdict(source.options),
            "dataset": dataset,
            "prior": prior or PriorConfig(),
            "optimizer": {"learning_rate": preset["learning_rate"]},
            "preview": watched.preview,
            "scoring": watched.scoring,
            "output": {"name": name, "save_every": save_every, "keep": keep_saves, **output},
            "steps": preset["steps"],
            "batch_size": preset["batch_size"],
            "seed": seed,
        }
    )
    return config.replace(settings.config)


def check_embedding_name(name: str) -> None:
    """Raises ValueError for a name that ComfyUI's own prompts cannot contain."""
    bad = sorted(ENDS_NAME & set(dated(name, datetime.now())))
    if bad:
        raise ValueError(
            f"name is {name!r}, and {bad[0]!r} would end it in a prompt: embedding:{name}. Use "
            "letters, digits, -, _ and /."
        )


def run(
    config: TrainingConfig, method: Method, on_existing: str, previews: PreviewPlan | None, *,
    vram: str,
) -> TrainingResult:  # fmt: skip
    """Train, or reuse a finished run. `config` contains the settings of the previews already."""
    judge, view = previews.judge if previews else None, live.current()
    view.update(total=config.steps, can_preview=bool(config.preview.prompts))
    with host.trainer_device(unload_now=False) as device, TrainingObserver(view) as observer:
        result = train(
            config,
            method,
            device=device,
            observer=observer,
            runs=folders.runs_folder(),
            on_existing=on_existing,
            load_encoder=partial(encoders.load, judge, device) if judge else None,
            vram=vram,
        )
        if result.reused:
            names = map(folders.menu_name, result.files.values())
            observer.show(f"Trained before: {', '.join(names)}")
            view.add_reports(result.reports)
            view.set_scores(result.scores)
    return result


def fingerprint(on_existing: str) -> float | str:
    """What ComfyUI compares to decide whether its cached result is valid. NaN equals nothing, so
    that resume and retrain always execute the node."""
    return "" if on_existing == "reuse" else float("nan")


# --- Inputs -------------------------------------------------------------------------------------


def model_and_photos() -> list[io.Input]:
    return [
        ModelSocket.Input(
            "model_source",
            tooltip="The model to start from: from Load Base Model, Model from Graph, Apply LoRA "
            "or an earlier training. Its file is not changed.",
        ),
        DatasetSocket.Input("dataset", tooltip="The photos, from Load Instance Images."),
    ]


def settings_links() -> list[io.Input]:
    return [
        OptimizerSocket.Input(
            "optimizer_settings",
            optional=True,
            tooltip="Optimizer, number formats and memory, from Optimizer Settings. Needed if "
            "memory is short or the defaults are not enough.",
        ),
        PreviewSocket.Input(
            "preview_settings",
            optional=True,
            tooltip="What to draw and score during training, from Preview Settings. Without it "
            "nothing is drawn.",
        ),
    ]


def run_widgets(name: str, name_note: str) -> list[io.Input]:
    """Widgets below those of the preset. `name` is the default file name."""
    output = replace(DEFAULTS.output, name=name)
    return [
        seed_input(DEFAULTS),
        widget(
            io.Int,
            output,
            "save_every",
            note="keep_saves says how many of them are kept.",
            min=0,
            max=1000000,
        ),
        widget(io.String, output, "name", note=name_note),
        io.Combo.Input(
            "on_existing",
            options=list(ON_EXISTING),
            default=ON_EXISTING[0],
            optional=True,
            tooltip="What to do if the same run exists already. reuse: use its result, or continue "
            "it if it was stopped. resume: the same, and also continue a run that was finished "
            "early if its state was kept; an error if there is no such run. retrain: train from "
            "the start, each time the workflow runs.",
        ),
    ]


def keep_saves_input() -> io.Input:
    """Goes last, because saved workflows store values by position."""
    return widget(
        io.Int,
        DEFAULTS.output,
        "keep",
        shown_as="keep_saves",
        note="Compare Settings compares those that are kept.",
        min=1,
        max=1000,
        advanced=True,
    )
