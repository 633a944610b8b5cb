"""Textual Inversion Train: a new word for the subject, learned in front of a model that stays as it
is."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..trainer.methods.textual_inversion import TEMPLATES, TextualInversion
from ..trainer.settings.config import DatasetConfig, TrainingConfig
from ..trainer.settings.presets import INVERSION_PRESETS
from . import folders
from .errors import naming_widgets
from .optimizer_settings import RUN
from .sockets import (
    CATEGORY,
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

DEFAULT = TextualInversion(placeholder="<my-subject>", initializer="dog")
DEFAULT_NAME = "my-subject"


class TextualInversionTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamBoothTextualInversionTrain",
            display_name="Textual Inversion Train",
            category=CATEGORY,
            essentials_category=CATEGORY,
            description="Learn a new word for the subject of the photos and write it as an "
            "embedding of a few kilobytes, which prompts use as embedding:name. The model itself "
            "stays as it is: less likeness than from DreamBooth, for less memory. DreamBooth Train "
            "can go on from there.",
            search_aliases=["dreambooth", "embedding", "ti", "learn a word", "train embedding"],
            is_output_node=True,
            # Two equal nodes each show their own progress; the second finds the first one's run.
            not_idempotent=True,
            inputs=[*_links(), *_word_inputs(), *_widgets()],
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
        assert result.embedding, "what this method writes"
        curve, *others = shown(result, model_source, "Textual Inversion Train")
        return io.NodeOutput(
            source_of(result.files, model_source),
            folders.embedding_name(result.embedding),
            curve,
            *others,
            ui=ui.PreviewImage(curve, cls=cls),
        )


def plan(
    model_source: ModelSource,
    dataset: DatasetConfig,
    preset: dict[str, Any],
    *,
    placeholder: str,
    initializer: str,
    num_vectors: int,
    optimizer_settings: TrainingSettings | None = None,
    preview_settings: PreviewPlan | None = None,
    keep_saves: int = RUN.output.keep,
    **widgets: Any,
) -> tuple[TrainingConfig, TextualInversion]:
    """The run that the node's inputs describe. ValueError for those that do not go together."""
    name = preset.pop("preset", None)
    if name not in INVERSION_PRESETS:
        raise ValueError(f"preset must be one of {', '.join(INVERSION_PRESETS)}, got {name!r}.")
    require_fit(name, INVERSION_PRESETS, model_source)
    settings = optimizer_settings or TrainingSettings(config={})
    watched = preview_settings or PreviewPlan()
    _refuse_other_methods(settings)
    check_embedding_name(widgets["name"])
    method = TextualInversion(
        placeholder=placeholder,
        initializer=initializer,
        num_vectors=num_vectors or None,
        templates=preset["templates"],
    )
    config = RUN.replace(
        {
            "base": model_source.path,
            "embedding": model_source.embedding,
            "dataset": dataset,
            "optimizer": {"learning_rate": preset["learning_rate"]},
            "preview": watched.preview,
            "scoring": watched.scoring,
            "output": {
                "folder": folders.embeddings_folder(),
                "name": widgets["name"],
                "save_every": widgets["save_every"],
                "keep": keep_saves,
                "keep_state": True,  # a few vectors
            },
            "steps": preset["steps"],
            "batch_size": preset["batch_size"],
            "seed": widgets["seed"],
        }
    )
    return config.replace(settings.config), method


def _refuse_other_methods(settings: TrainingSettings) -> None:
    """Settings of DreamBooth's, which would do nothing here."""
    for name, value in settings.method.items():
        if value:
            raise ValueError(
                f"{name} of Optimizer Settings is {value}, which means nothing for textual "
                "inversion: it trains the new word and nothing else. Set it to its default, or "
                "leave Optimizer Settings out."
            )


def _links() -> list[io.Input]:
    return [
        ModelSocket.Input("model_source", tooltip="The model to learn for. It stays as it is."),
        DatasetSocket.Input("dataset", tooltip="The photos, from Load Instance Images."),
        *settings_links(),
    ]


def _word_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "placeholder",
            default=DEFAULT.placeholder,
            tooltip="The new word: one that CLIP does not know, such as <my-dog>. The prompts of "
            "the DreamBooth nodes have it; ComfyUI's own prompts have embedding:name instead.",
        ),
        io.String.Input(
            "initializer",
            default=DEFAULT.initializer,
            tooltip="What the subject is, in one or a few common words: dog, white cup. Learning "
            "starts from their meaning.",
        ),
        io.Int.Input(
            "num_vectors",
            default=DEFAULT.num_vectors or 0,
            min=0,
            max=75,
            tooltip="Vectors of the new word, 1 to 8; each takes the room of one of a prompt's 75 "
            "tokens. 0 takes one for each word of the initializer.",
        ),
    ]


def _widgets() -> list[io.Input]:
    return [
        io.DynamicCombo.Input(
            "preset",
            options=[
                io.DynamicCombo.Option(name, _preset_inputs(name)) for name in INVERSION_PRESETS
            ],
            tooltip="textual inversion: any Stable Diffusion 1 checkpoint. toy: the embedded "
            "model. Choosing one fills in the four values below it, which can then be changed.",
        ),
        *run_widgets(
            "embedding",
            DEFAULT_NAME,
            "File name of the embedding in ComfyUI's embeddings folder, without ending: what "
            "prompts call it, embedding:name. A counter is added rather than overwriting a file.",
        ),
        keep_saves_input("embedding"),
    ]


def _preset_inputs(name: str) -> list[io.Input]:
    preset = {key: value for key, value in INVERSION_PRESETS[name].items() if key != "method"}
    config = RUN.replace(preset)
    options = {"templates": DEFAULT.templates, **INVERSION_PRESETS[name].get("method", {})}
    return [
        learning_rate_input(
            "learning_rate",
            config.optimizer.learning_rate,
            "Per step. 1e-4 to 5e-3 for Stable Diffusion 1, about 3e-3 for the toy: far more than "
            "a model's weights take.",
        ),
        io.Int.Input(
            "steps",
            default=config.steps,
            min=1,
            max=1000000,
            tooltip="Training steps: 1000 to 3000 for Stable Diffusion 1, 300 for the toy.",
        ),
        photos_per_step_input(config),
        io.Combo.Input(
            "templates",
            options=list(TEMPLATES),
            default=options["templates"],
            tooltip="What is written around the new word: sentences for an object, a style or a "
            "face; captions takes the instance prompt. A photo's own caption goes before either. "
            "Prompt and caption must have the placeholder.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        ModelSocket.Output(
            "inverted_source",
            display_name="model source",
            tooltip="The model together with the new word, for DreamBooth Train and Sample with "
            "Scheduler, whose prompts may then have the placeholder.",
        ),
        io.String.Output(
            "embedding_name",
            display_name="embedding name",
            tooltip="What ComfyUI's own prompts have behind 'embedding:', without a space.",
        ),
        *run_outputs(),
    ]
