"""DreamBooth Train: the run itself. Its companions are Optimizer Settings and Preview
Settings."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..trainer.methods.full import FullFineTune
from ..trainer.settings.config import DatasetConfig, PriorConfig, TrainingConfig
from ..trainer.settings.presets import PRESETS
from . import folders
from .errors import naming_widgets
from .optimizer_settings import RUN
from .sockets import (
    CATEGORY,
    ClassDatasetSocket,
    DatasetSocket,
    ModelSocket,
    ModelSource,
    PreviewPlan,
    TrainingSettings,
)
from .training import (
    ON_EXISTING,
    check_embedding_name,
    fingerprint_of,
    keep_saves_input,
    photos_per_step_input,
    require_fit,
    run,
    run_outputs,
    run_widgets,
    settings_links,
    shown,
    source_of,
)
from .widgets import learning_rate_input


class DreamBoothTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamBoothTrain",
            display_name="DreamBooth Train",
            category=CATEGORY,
            essentials_category=CATEGORY,
            description="Teach a Stable Diffusion checkpoint the subject of the photos, and write "
            "a new checkpoint that draws it. What was trained before with the very same settings "
            "and images is found again rather than trained again.",
            search_aliases=["dreambooth", "finetune", "fine-tune", "train subject", "train face"],
            is_output_node=True,
            # Two equal nodes each show their own progress; the second finds the first one's run.
            not_idempotent=True,
            inputs=[*_links(), *_widgets()],
            outputs=_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, on_existing: str = ON_EXISTING[0], **others: Any) -> float | str:
        return fingerprint_of(on_existing)

    @classmethod
    @naming_widgets()
    def execute(
        cls,
        model_source: ModelSource,
        dataset: DatasetConfig,
        preset: dict[str, Any] | None = None,
        on_existing: str = ON_EXISTING[0],
        **settings: Any,
    ) -> io.NodeOutput:
        config, method = plan(model_source, dataset, dict(preset or {}), **settings)
        result = run(config, method, on_existing, settings.get("preview_settings"))
        curve, *others = shown(result, model_source, "DreamBooth Train")
        return io.NodeOutput(
            source_of(result.files, model_source),
            folders.checkpoint_name(result.checkpoint),
            curve,
            *others,
            ui=ui.PreviewImage(curve, cls=cls),
        )


def plan(
    model_source: ModelSource,
    dataset: DatasetConfig,
    preset: dict[str, Any],
    *,
    class_dataset: PriorConfig | None = None,
    optimizer_settings: TrainingSettings | None = None,
    preview_settings: PreviewPlan | None = None,
    keep_state: bool = RUN.output.keep_state,
    keep_saves: int = RUN.output.keep,
    **widgets: Any,
) -> tuple[TrainingConfig, FullFineTune]:
    """The run that the node's inputs describe. ValueError for those that do not go together."""
    name = preset.pop("preset", None)
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}.")
    require_fit(name, PRESETS, model_source)
    prior = _with_weight(class_dataset, preset["prior_weight"])
    settings = optimizer_settings or TrainingSettings(config={})
    watched = preview_settings or PreviewPlan()
    if settings.method.get("train_embedding"):
        check_embedding_name(widgets["name"])
    config, method = of_preset(name)
    output = {
        "folder": folders.trained_folder(),
        "embedding_folder": folders.embeddings_folder(),
        "name": widgets["name"],
        "save_every": widgets["save_every"],
        "keep": keep_saves,
        "keep_state": keep_state,
    }
    config = config.replace(
        {
            "base": model_source.path,
            "embedding": model_source.embedding,
            "dataset": dataset,
            "prior": prior,
            "optimizer": {"learning_rate": preset["learning_rate"]},
            "preview": watched.preview,
            "scoring": watched.scoring,
            "output": output,
            "steps": preset["steps"],
            "batch_size": preset["batch_size"],
            "seed": widgets["seed"],
        }
    )
    options = {**settings.method, "train_text_encoder": preset["train_text_encoder"]}
    return config.replace(settings.config), FullFineTune(**options)


def of_preset(name: str) -> tuple[TrainingConfig, FullFineTune]:
    """A run with a preset's values, and the placeholders of `RUN` where it has none."""
    values = {key: value for key, value in PRESETS[name].items() if key != "method"}
    run = RUN.replace({"prior": {"prompt": "-"}})
    return run.replace(values), FullFineTune(**PRESETS[name].get("method", {}))


def _with_weight(class_dataset: PriorConfig | None, weight: float) -> PriorConfig:
    if class_dataset is None and weight > 0:
        raise ValueError(
            f"prior_weight is {weight:g}, but no class images are connected. Connect Generate "
            "Class Priors to class_dataset, or set prior_weight to 0."
        )
    if class_dataset is not None and weight == 0:
        raise ValueError(
            "Class images are connected, but prior_weight is 0, so they would not be used. Set "
            "prior_weight to 1, or disconnect class_dataset."
        )
    if class_dataset is None:
        return PriorConfig()
    return PriorConfig(weight=weight, prompt=class_dataset.prompt, images=class_dataset.images)


def _links() -> list[io.Input]:
    return [
        ModelSocket.Input(
            "model_source", tooltip="The checkpoint to start from. It stays as it is."
        ),
        DatasetSocket.Input("dataset", tooltip="The photos, from Load Instance Images."),
        ClassDatasetSocket.Input(
            "class_dataset",
            optional=True,
            tooltip="Images of the class, from Generate Class Priors, so that it is not forgotten. "
            "Needed where prior_weight is above 0.",
        ),
        *settings_links(),
    ]


def _widgets() -> list[io.Input]:
    return [
        io.DynamicCombo.Input(
            "preset",
            options=[io.DynamicCombo.Option(name, _preset_inputs(name)) for name in PRESETS],
            tooltip="object: things and animals. face: people, with class images and the text "
            "encoder. textual inversion + DreamBooth: after Textual Inversion Train. toy: the "
            "embedded model. Choosing one fills in the five values below it, which can then be "
            "changed.",
        ),
        *run_widgets(
            "checkpoint",
            RUN.output.name,
            "File name of the checkpoint in checkpoints/dreambooth, without ending. A counter is "
            "added rather than overwriting a file.",
        ),
        io.Boolean.Input(
            "keep_state",
            default=RUN.output.keep_state,
            optional=True,
            advanced=True,
            tooltip="Keep the last state of a finished run, several times as large as its "
            "checkpoint, so that a run of more steps goes on from there.",
        ),
        keep_saves_input("checkpoint"),
    ]


def _preset_inputs(name: str) -> list[io.Input]:
    config, method = of_preset(name)
    return [
        learning_rate_input(
            "learning_rate",
            config.optimizer.learning_rate,
            "Per step. 1e-6 to 5e-6 for Stable Diffusion 1, about 2e-4 for the toy. Too high, and "
            "every prompt gives the training photos.",
        ),
        io.Int.Input(
            "steps",
            default=config.steps,
            min=1,
            max=1000000,
            tooltip="Training steps: about 100 per photo for things, 200 for faces. More draw the "
            "subject better until the model draws nothing else.",
        ),
        photos_per_step_input(config, "; class images come on top"),
        io.Boolean.Input(
            "train_text_encoder",
            default=method.train_text_encoder,
            tooltip="Train the text encoder too: more likeness, most of all for faces, for a sixth "
            "more memory and a third more time.",
        ),
        io.Float.Input(
            "prior_weight",
            default=config.prior.weight,
            min=0.0,
            max=10.0,
            step=0.05,
            tooltip="Weight of the class images beside the photos: 0 is off, 1 the usual.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        ModelSocket.Output(
            "trained_source",
            display_name="model source",
            tooltip="The trained checkpoint, for Use Trained Model and Sample with Scheduler, or "
            "to train on.",
        ),
        io.String.Output(
            "checkpoint_name",
            display_name="checkpoint name",
            tooltip="The checkpoint's name in Load Checkpoint's menu.",
        ),
        *run_outputs(),
    ]
