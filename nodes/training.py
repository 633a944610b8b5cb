"""What the training nodes have in common: a run inside ComfyUI, what it shows, and its widgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from comfy_api.latest import io

from ..trainer.evaluation import encoders
from ..trainer.evaluation.plots import loss_curve
from ..trainer.loop import TrainingResult, train
from ..trainer.methods.base import Method
from ..trainer.runs.run import OnExisting
from ..trainer.settings.config import TrainingConfig
from . import folders, host
from .images import to_batch
from .models import open_source
from .optimizer_settings import RUN
from .sockets import (
    ModelSocket,
    ModelSource,
    OptimizerSocket,
    PreviewPlan,
    PreviewSocket,
    SavesSocket,
)
from .widgets import seed_input

ON_EXISTING = get_args(OnExisting)
FOR_SMALL_MODELS = "toy"
"""The preset for models like the embedded one, and for no other."""
UNSEEN = (
    "{} drew no previews. Connect Preview Settings, with 'every' no larger than the number of "
    "steps."
)
BREAKS_PROMPTS = set(" ,()[]<>")
"""What ends a name behind `embedding:` in a prompt of ComfyUI's."""


def run(
    config: TrainingConfig, method: Method, on_existing: str, plan: PreviewPlan | None
) -> TrainingResult:
    """Train, or find what was trained before. The previews' settings are in `config` already."""
    judge = plan.judge if plan else None
    with host.stepping_aside(at_once=False) as device, host.ComfyObserver() as observer:
        result = train(
            config,
            method,
            device=device,
            observer=observer,
            runs=folders.runs_folder(),
            on_existing=on_existing,
            load_encoder=partial(encoders.load, judge, device) if judge else None,
        )
        if result.reused:
            names = map(folders.checkpoint_name, result.files.values())
            observer.say(f"Trained before: {', '.join(names)}")
    return result


def fingerprint_of(on_existing: str) -> float | str:
    """Never equal to itself where training again or on is asked for: that is not served from
    ComfyUI's cache."""
    return "" if on_existing == "reuse" else float("nan")


def require_fit(preset: str, presets: Mapping[str, Any], source: ModelSource) -> None:
    """A toy's learning rate destroys a real model at once; a real one's does nothing to a toy."""
    fitting = [name for name in presets if (name == FOR_SMALL_MODELS) != source.is_full_size]
    if preset not in fitting:
        kind = "a model of the published size" if source.is_full_size else "a small model"
        raise ValueError(
            f"preset is {preset}, which is not made for '{source.path.name}', {kind}. Choose "
            f"{' or '.join(fitting)}."
        )


def check_embedding_name(name: str) -> None:
    """ValueError for the name of an embedding that prompts cannot say."""
    bad = sorted(BREAKS_PROMPTS & set(name))
    if bad:
        raise ValueError(
            f"name is {name!r}, and {bad[0]!r} would end it in a prompt: embedding:{name}. Use "
            "letters, digits, - and _."
        )


def shown(result: TrainingResult, source: ModelSource, node: str) -> list[Any]:
    """The values of `run_outputs`."""
    saves = tuple(source_of(files, source) for files in (*result.saves, result.files))
    return [
        to_batch([loss_curve(result.reports, result.scores)]),
        to_batch(result.previews) if result.previews else host.blocked(UNSEEN.format(node)),
        saves,
        source_of(result.best or result.files, source),
    ]


def source_of(files: Mapping[str, Path], source: ModelSource) -> ModelSource:
    """The model of these files of a run that began with `source`."""
    checkpoint, embedding = files.get("checkpoint"), files.get("embedding", source.embedding)
    if checkpoint is None:
        return replace(source, embedding=embedding)
    return open_source(checkpoint, embedding)


def run_outputs() -> list[io.Output]:
    """What every run gives, behind its model and the name of its file."""
    return [
        io.Image.Output(
            "loss_curve",
            display_name="loss curve",
            tooltip="The losses over the steps and, where Preview Settings has a judge, what was "
            "learned and kept.",
        ),
        io.Image.Output(
            "previews",
            display_name="previews",
            tooltip="The last previews, one per prompt of Preview Settings.",
        ),
        SavesSocket.Output(
            "saves",
            display_name="saves",
            tooltip="All stages of the run, for Compare Settings: what was saved on the way and is "
            "still there, then the result.",
        ),
        ModelSocket.Output(
            "best_source",
            display_name="best step",
            tooltip="The model of the step with the best scores, where Preview Settings has a "
            "judge; otherwise, or if no step was better, the same as model source.",
        ),
    ]


def settings_links() -> list[io.Input]:
    return [
        OptimizerSocket.Input(
            "optimizer_settings",
            optional=True,
            tooltip="Optimizer, number formats, memory: from Optimizer Settings.",
        ),
        PreviewSocket.Input(
            "preview_settings",
            optional=True,
            tooltip="What to draw and to score while training: from Preview Settings. None draws "
            "nothing.",
        ),
    ]


def keep_saves_input(file: str) -> io.Input:
    """Stands last: saved workflows know widgets by their places."""
    return io.Int.Input(
        "keep_saves",
        default=RUN.output.keep,
        min=1,
        max=1000,
        optional=True,
        advanced=True,
        tooltip=f"How many intermediate {file}s stay: the newest ones. Compare Settings compares "
        "those that stay.",
    )


def photos_per_step_input(config: TrainingConfig, more: str = "") -> io.Input:
    return io.Int.Input(
        "batch_size",
        default=config.batch_size,
        min=1,
        max=256,
        tooltip=f"Photos per step, 1 to 8{more}. More takes more memory.",
    )


def run_widgets(file: str, name: str, name_tooltip: str) -> list[io.Input]:
    """`file` is what the run writes: "checkpoint"; `name` its default name."""
    return [
        seed_input(RUN.seed, "Decides every random draw of the run. Another seed is another run."),
        io.Int.Input(
            "save_every",
            default=RUN.output.save_every,
            min=0,
            max=1000000,
            tooltip=f"Steps between intermediate {file}s, of which the newest stay, as many as "
            "keep_saves says; 0 saves only at the end.",
        ),
        io.String.Input("name", default=name, tooltip=name_tooltip),
        io.Combo.Input(
            "on_existing",
            options=list(ON_EXISTING),
            default=ON_EXISTING[0],
            tooltip=f"Of the very same run from before: reuse takes its {file}, or goes on where "
            "it was stopped; resume does too, also where it was finished early with its state "
            "kept, but refuses to begin a new run; retrain begins anew.",
        ),
    ]
