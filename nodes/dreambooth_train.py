"""DreamBooth Train: fine-tune a checkpoint on photos of a subject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..trainer.families.sdxl import SDXL
from ..trainer.methods.base import Method
from ..trainer.methods.full import FullFineTune
from ..trainer.settings.config import DatasetConfig, PriorConfig, TrainingConfig
from ..trainer.settings.presets import LORA_PRESETS, PRESETS
from . import folders, host, live, presets, training, training_outputs
from .extract_lora import extract_of_run
from .presets import DREAMBOOTH_PRESETS, FOR_LORA
from .running import first_values, node_schema, runs_once
from .sockets import ClassDatasetSocket, ModelSocket, ModelSource, TrainingSettings
from .trains import Target, require_choice, target_of, trains_input
from .widgets import DEFAULTS, learning_rate_input, vram_input, widget

DISPLAY_NAME = "DreamBooth Train"
AFTER_INVERSION = "textual inversion + DreamBooth"
"""The preset for models with an embedding."""
TEXT_ENCODER_RATE = "text_encoder_learning_rate"
LORA_NAME = 6
"""The place of the last output."""
NO_CHECKPOINT = (
    "A LoRA was trained, so checkpoint name is empty. Use lora name, or set trains to full weights."
)
NO_LORA = (
    "Full weights were trained, so lora name is empty. Set trains to LoRA to train one, or to full "
    "weights and a LoRA to extract one too."
)


class DreamBoothTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamBoothTrain",
            display_name=DISPLAY_NAME,
            description="Teach a Stable Diffusion checkpoint the subject of the photos, and save a "
            "new checkpoint that draws it, or a LoRA. If a run with the same settings and images "
            "is finished already, its result is reused.",
            search_aliases=[
                "dreambooth",
                "train finetune face",
                "train finetune person",
                "train finetune character",
                "train finetune pet object",
                "train finetune subject",
                "train finetune checkpoint model",
                "train finetune lora",
                "lora training",
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
        trains: dict[str, Any] | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        require_choice(live.own_inputs(cls).get("trains"))
        target = target_of(trains or {}, model_source, name=settings["name"])
        config, method = plan(target, dataset, preset or {}, **settings)
        previews = settings.get("preview_settings")
        result = training.run(config, method, on_existing, previews, vram=vram)
        if result.lora:
            name = folders.lora_name(result.lora)
            no_checkpoint = host.no_result(NO_CHECKPOINT)
            return training_outputs.node_output(
                result, target.source, name, DISPLAY_NAME, name, name=no_checkpoint
            )
        name = folders.checkpoint_name(result.checkpoint)
        # Full weights are the usual case, so it is only said to those who ask for a LoRA's name.
        reason = NO_LORA if live.is_connected(cls, LORA_NAME) else ""
        lora = (
            extract_of_run(target.source, result.checkpoint, target.extracted_rank)
            if target.extracted_rank
            else host.no_result(reason)
        )
        return training_outputs.node_output(result, target.source, name, DISPLAY_NAME, lora)


def plan(
    target: Target,
    dataset: DatasetConfig,
    preset: Mapping[str, Any],
    *,
    class_dataset: PriorConfig | None = None,
    optimizer_settings: TrainingSettings | None = None,
    keep_state: bool = DEFAULTS.output.keep_state,
    **inputs: Any,
) -> tuple[TrainingConfig, Method]:
    """The run that the node's inputs describe. Raises ValueError for inputs that do not go
    together."""
    if preset.get("preset") == presets.AUTO:
        preset = _fitting_values(target, has_class_images=class_dataset is not None)
    else:
        presets.check_target(preset.get("preset"), is_lora=target.lora is not None)
        presets.check(preset.get("preset"), DREAMBOOTH_PRESETS, target.source)
    prior = _with_weight(class_dataset, preset["prior_weight"])
    _require_one_prompt(class_dataset, optimizer_settings)
    options = _method_options(preset, optimizer_settings)
    if options.get("train_embedding"):
        training.check_embedding_name(inputs["name"])
    config = training.run_config(
        target.source,
        dataset,
        preset,
        optimizer_settings=optimizer_settings,
        preview_settings=inputs.pop("preview_settings", None),
        prior=prior,
        output={
            "folder": folders.loras_folder() if target.lora else folders.trained_folder(),
            "embedding_folder": folders.embeddings_folder(),
            "keep_state": keep_state,
        },
        **inputs,
    )
    return config, target.method(options)


def _method_options(preset: Mapping[str, Any], settings: TrainingSettings | None) -> dict[str, Any]:
    """The options of text encoders and embeddings: those of Optimizer Settings come first."""
    options = dict(settings.method) if settings else {}
    options["train_text_encoder"] = preset["train_text_encoder"]
    if preset["train_text_encoder"] and not options.get(TEXT_ENCODER_RATE):
        options[TEXT_ENCODER_RATE] = preset.get(TEXT_ENCODER_RATE) or None
    return options


def _fitting_values(target: Target, *, has_class_images: bool) -> dict[str, Any]:
    """The values of the preset that fits the model. Class images are used if there are any."""
    source = target.source
    if target.lora:
        name = FOR_LORA + presets.fitting(source, "object", LORA_PRESETS)
    else:
        is_xl = source.family is SDXL
        name = AFTER_INVERSION if source.embedding and not is_xl else "object"
        name = presets.fitting(source, name, PRESETS)
    weight = 1.0 if has_class_images else 0.0
    values = presets.values(DREAMBOOTH_PRESETS[name], _preset_inputs, prior_weight=weight)
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


def _require_one_prompt(
    class_dataset: PriorConfig | None, settings: TrainingSettings | None
) -> None:
    asked = settings.config.get("prior", {}).get("prompt") if settings else None
    if class_dataset and asked and asked != class_dataset.prompt:
        raise ValueError(
            f"class_prompt of Optimizer Settings is {asked!r}, but the class images show "
            f"{class_dataset.prompt!r}. Leave it empty, or write the same."
        )


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
            DREAMBOOTH_PRESETS,
            _preset_inputs,
            "Recommended values. auto: those that fit the model, with class images if they are "
            "connected; the node shows them. object: things and animals. face: people, with class "
            "images and the text encoder. textual inversion + DreamBooth: after Textual Inversion "
            "Train. object XL, face XL: the same for Stable Diffusion XL and models made from it. "
            "toy: the embedded model. Those that begin with LoRA: the same, if trains is set to "
            "LoRA. Each but auto shows its values below, which you can then change.",
        ),
        *training.run_widgets(
            DEFAULTS.output.name,
            "The checkpoint is saved in checkpoints/dreambooth, a LoRA in loras/dreambooth.",
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
        trains_input(),
    ]


def _preset_inputs(preset: Mapping[str, Any]) -> list[io.Input]:
    config, method = presets.preset_config(preset), FullFineTune(**preset.get("method", {}))
    inputs = [
        *presets.schedule_inputs(config),
        widget(io.Boolean, method, "train_text_encoder"),
        widget(
            io.Float, config.prior, "weight", shown_as="prior_weight", min=0.0, max=10.0, step=0.05
        ),
    ]
    if method.text_encoder_learning_rate:
        note = "That of Optimizer Settings is used instead, if it is set."
        inputs.append(learning_rate_input(method, TEXT_ENCODER_RATE, minimum=0.0, note=note))
    return inputs


def _outputs() -> list[io.Output]:
    return [
        ModelSocket.Output(
            "trained_source",
            display_name="model source",
            tooltip="The trained checkpoint, or the model with the trained LoRA. Connect to Use "
            "Trained Model or Sample with Scheduler, or to DreamBooth Train to train it further.",
        ),
        io.String.Output(
            "checkpoint_name",
            display_name="checkpoint name",
            tooltip="The name of the checkpoint in the menu of Load Checkpoint. If a LoRA is "
            "trained, it is empty, and nodes connected to it are left out.",
        ),
        *training_outputs.run_outputs(),
        io.String.Output(
            "lora_name",
            display_name="lora name",
            tooltip="The name of the LoRA in the menu of Load LoRA. If only full weights are "
            "trained, it is empty, and nodes connected to it are left out.",
        ),
    ]
