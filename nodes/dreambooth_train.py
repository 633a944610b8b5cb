"""DreamBooth Train: fine-tune a checkpoint on photos of a subject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..trainer.families.sdxl import SDXL
from ..trainer.methods.full import FullFineTune
from ..trainer.settings.config import DatasetConfig, PriorConfig, TrainingConfig
from ..trainer.settings.presets import PRESETS
from . import folders, live, presets, training, training_outputs
from .running import first_values, node_schema, runs_once
from .sockets import ClassDatasetSocket, ModelSocket, ModelSource, TrainingSettings
from .widgets import DEFAULTS, vram_input, widget

DISPLAY_NAME = "DreamBooth Train"
AFTER_INVERSION = "textual inversion + DreamBooth"
"""The preset for models with an embedding."""


class DreamBoothTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamBoothTrain",
            display_name=DISPLAY_NAME,
            description="Teach a Stable Diffusion checkpoint the subject of the photos, and save a "
            "new checkpoint that draws it. If a run with the same settings and images is finished "
            "already, its result is reused.",
            search_aliases=[
                "dreambooth",
                "train finetune face",
                "train finetune person",
                "train finetune character",
                "train finetune pet object",
                "train finetune subject",
                "train finetune checkpoint model",
                "train on own photos",
                "teach",
            ],
            is_output_node=True,
            # Two equal nodes each show their own progress; the second finds the first one's run.
            not_idempotent=True,
            inputs=[*_links(), *_widgets()],
            outputs=_outputs(),
        )

    @classmethod
    @first_values
    def fingerprint_inputs(
        cls, on_existing: str = training.ON_EXISTING[0], **others: Any
    ) -> float | str:
        return training.fingerprint(on_existing)

    @classmethod
    @live.shown
    @runs_once()
    def execute(
        cls,
        model_source: ModelSource,
        dataset: DatasetConfig,
        preset: dict[str, Any] | None = None,
        on_existing: str = training.ON_EXISTING[0],
        vram: str = "off",
        **settings: Any,
    ) -> io.NodeOutput:
        config, method = plan(model_source, dataset, preset or {}, **settings)
        previews = settings.get("preview_settings")
        result = training.run(config, method, on_existing, previews, vram=vram)
        name = folders.checkpoint_name(result.checkpoint)
        return training_outputs.node_output(result, model_source, name, DISPLAY_NAME)


def plan(
    model_source: ModelSource,
    dataset: DatasetConfig,
    preset: Mapping[str, Any],
    *,
    class_dataset: PriorConfig | None = None,
    optimizer_settings: TrainingSettings | None = None,
    keep_state: bool = DEFAULTS.output.keep_state,
    **inputs: Any,
) -> tuple[TrainingConfig, FullFineTune]:
    """The run that the node's inputs describe. Raises ValueError for inputs that do not go
    together."""
    if preset.get("preset") == presets.AUTO:
        preset = _fitting_values(model_source, has_class_images=class_dataset is not None)
    else:
        presets.check(preset.get("preset"), PRESETS, model_source)
    prior = _with_weight(class_dataset, preset["prior_weight"])
    method = dict(optimizer_settings.method) if optimizer_settings else {}
    if method.get("train_embedding"):
        training.check_embedding_name(inputs["name"])
    config = training.run_config(
        model_source,
        dataset,
        preset,
        optimizer_settings=optimizer_settings,
        preview_settings=inputs.pop("preview_settings", None),
        prior=prior,
        output={
            "folder": folders.trained_folder(),
            "embedding_folder": folders.embeddings_folder(),
            "keep_state": keep_state,
        },
        **inputs,
    )
    method["train_text_encoder"] = preset["train_text_encoder"]
    return config, FullFineTune(**method)


def _fitting_values(source: ModelSource, *, has_class_images: bool) -> dict[str, Any]:
    """The values of the preset that fits the model. Class images are used if there are any."""
    is_xl = source.family is SDXL
    name = AFTER_INVERSION if source.embedding and not is_xl else "object"
    name = presets.fitting(source, name, PRESETS)
    weight = 1.0 if has_class_images else 0.0
    values = presets.values(PRESETS[name], _preset_inputs, prior_weight=weight)
    presets.announce(name, values)
    return values


def _with_weight(class_dataset: PriorConfig | None, weight: float) -> PriorConfig:
    if class_dataset is None and weight > 0:
        raise ValueError(
            f"prior_weight is {weight:g}, but no class images are connected. Connect Generate "
            "Class Priors to class_dataset, or set prior_weight to 0."
        )
    if class_dataset is not None and weight == 0:
        raise ValueError(
            "Class images are connected, but prior_weight is 0, so they would not be used. Set "
            "prior_weight to 1, choose the preset auto, or disconnect class_dataset."
        )
    if class_dataset is None:
        return PriorConfig()
    return PriorConfig(weight=weight, prompt=class_dataset.prompt, images=class_dataset.images)


def _links() -> list[io.Input]:
    return [
        *training.model_and_photos(),
        ClassDatasetSocket.Input(
            "class_dataset",
            optional=True,
            tooltip="Images of the class, from Generate Class Priors. Needed if prior_weight is "
            "above 0, as in the presets face and toy. Without them the whole class becomes more "
            "like the subject.",
        ),
        *training.settings_links(),
    ]


def _widgets() -> list[io.Input]:
    return [
        presets.preset_input(
            PRESETS,
            _preset_inputs,
            "Recommended values. auto: those that fit the model, with class images if they are "
            "connected; the node shows them. object: things and animals. face: people, with class "
            "images and the text encoder. textual inversion + DreamBooth: after Textual Inversion "
            "Train. object XL, face XL: the same for Stable Diffusion XL and models made from it. "
            "toy: the embedded model. Each but auto shows its five values below, which you can "
            "then change.",
        ),
        *training.run_widgets(
            DEFAULTS.output.name, "The checkpoint is saved in checkpoints/dreambooth."
        ),
        widget(
            io.Boolean,
            DEFAULTS.output,
            "keep_state",
            note="Runs are kept in output/dreambooth/runs.",
            advanced=True,
        ),
        training.keep_saves_input(),
        vram_input(),
    ]


def _preset_inputs(preset: Mapping[str, Any]) -> list[io.Input]:
    config, method = presets.preset_config(preset), FullFineTune(**preset.get("method", {}))
    return [
        *presets.schedule_inputs(config),
        widget(io.Boolean, method, "train_text_encoder"),
        widget(
            io.Float, config.prior, "weight", shown_as="prior_weight", min=0.0, max=10.0, step=0.05
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        ModelSocket.Output(
            "trained_source",
            display_name="model source",
            tooltip="The trained checkpoint. Connect to Use Trained Model or Sample with "
            "Scheduler, or to DreamBooth Train to train it further.",
        ),
        io.String.Output(
            "checkpoint_name",
            display_name="checkpoint name",
            tooltip="The name of the checkpoint in the menu of Load Checkpoint.",
        ),
        *training_outputs.run_outputs(),
    ]
