"""Textual Inversion Train: learn an embedding for a subject; the model does not change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..trainer.families.tokenizer import has_placeholder
from ..trainer.methods.textual_inversion import TEMPLATES, TextualInversion
from ..trainer.settings.config import DatasetConfig, TrainingConfig
from ..trainer.settings.presets import INVERSION_PRESETS
from . import folders, live, presets, training, training_outputs
from .running import first_values, node_schema, runs_once
from .sockets import ModelSocket, ModelSource, TrainingSettings
from .widgets import vram_input, widget

DISPLAY_NAME = "Textual Inversion Train"
DEFAULT = TextualInversion(placeholder="<my-subject>", initializer="cup")
DEFAULT_NAME = "my-subject"


class TextualInversionTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamBoothTextualInversionTrain",
            display_name=DISPLAY_NAME,
            description="Learn a new token for the subject of the photos and save it as an "
            'embedding of a few kilobytes, which prompts use as "embedding:name". The model itself '
            "does not change: less likeness than with DreamBooth, for less memory. DreamBooth "
            "Train can continue from there.",
            search_aliases=[
                "dreambooth",
                "ti",
                "train embedding",
                "finetune embedding",
                "learn teach word token",
                "train style",
                "train face person embedding",
                "train character embedding",
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
        assert result.embedding, "this method always saves one"
        name = folders.embedding_name(result.embedding)
        return training_outputs.node_output(result, model_source, name, DISPLAY_NAME)


def plan(
    model_source: ModelSource,
    dataset: DatasetConfig,
    preset: Mapping[str, Any],
    *,
    placeholder: str,
    initializer: str,
    num_vectors: int,
    directional: bool = DEFAULT.directional,
    optimizer_settings: TrainingSettings | None = None,
    **inputs: Any,
) -> tuple[TrainingConfig, TextualInversion]:
    """The run that the node's inputs describe. Raises ValueError for inputs that do not go
    together."""
    if preset.get("preset") == presets.AUTO:
        preset = _fitting_values(model_source, dataset.prompt, placeholder)
    else:
        presets.check(preset.get("preset"), INVERSION_PRESETS, model_source)
    _refuse_settings_of_dreambooth(optimizer_settings)
    training.check_embedding_name(inputs["name"])
    method = TextualInversion(
        placeholder=placeholder,
        initializer=initializer,
        num_vectors=num_vectors or None,
        templates=preset["templates"],
        directional=directional,
    )
    config = training.run_config(
        model_source,
        dataset,
        preset,
        optimizer_settings=optimizer_settings,
        preview_settings=inputs.pop("preview_settings", None),
        # The state is a few vectors, so it is always kept.
        output={"folder": folders.embeddings_folder(), "keep_state": True},
        **inputs,
    )
    return config, method


def _fitting_values(source: ModelSource, prompt: str, placeholder: str) -> dict[str, Any]:
    """The values of the preset that fits the model. A prompt without the placeholder cannot be the
    caption, so that sentences take its place."""
    name = presets.fitting(source, "textual inversion", INVERSION_PRESETS)
    values = presets.values(INVERSION_PRESETS[name], _preset_inputs)
    if not has_placeholder(prompt, placeholder):
        values["templates"] = DEFAULT.templates
    presets.announce(name, values)
    return values


def _refuse_settings_of_dreambooth(settings: TrainingSettings | None) -> None:
    for name, value in settings.method.items() if settings else ():
        if value:
            raise ValueError(
                f"{name} of Optimizer Settings is {value}, which has no effect in textual "
                "inversion: only the new token is trained. Set it to its default, or disconnect "
                "Optimizer Settings."
            )


def _links() -> list[io.Input]:
    return [*training.model_and_photos(), *training.settings_links()]


def _widgets() -> list[io.Input]:
    return [
        widget(
            io.String,
            DEFAULT,
            "placeholder",
            note="A word that CLIP knows is refused, as its meaning would change everywhere.",
        ),
        widget(io.String, DEFAULT, "initializer"),
        widget(io.Int, DEFAULT, "num_vectors", min=0, max=75),
        presets.preset_input(
            INVERSION_PRESETS,
            _preset_inputs,
            "Recommended values. auto: those that fit the model; the node shows them. textual "
            "inversion: any full-size checkpoint. toy: the embedded model. Each but auto "
            "shows its four values below, which you can then change.",
        ),
        *training.run_widgets(
            DEFAULT_NAME,
            "The embedding is saved in ComfyUI's embeddings folder, and prompts contain its name: "
            '"embedding:name". Use letters, digits, -, _ and /.',
        ),
        training.keep_saves_input(),
        vram_input(),
        widget(io.Boolean, DEFAULT, "directional", advanced=True),
    ]


def _preset_inputs(preset: Mapping[str, Any]) -> list[io.Input]:
    method = replace(DEFAULT, **preset.get("method", {}))
    return [
        *presets.schedule_inputs(presets.preset_config(preset)),
        widget(io.Combo, method, "templates", options=list(TEMPLATES)),
    ]


def _outputs() -> list[io.Output]:
    return [
        ModelSocket.Output(
            "inverted_source",
            display_name="model source",
            tooltip="The model together with the embedding, so that prompts can contain the "
            "placeholder. Connect to DreamBooth Train or Sample with Scheduler.",
        ),
        io.String.Output(
            "embedding_name",
            display_name="embedding name",
            tooltip='What follows "embedding:" in ComfyUI\'s own prompts, without a space. Connect '
            "to a text node such as Replace Text.",
        ),
        *training_outputs.run_outputs(),
    ]
