"""Generate Class Priors: images of the class, drawn by the base model or the user's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer import families, precision
from ..trainer.data.examples import find_examples
from ..trainer.families.networks import NumberFormats
from ..trainer.sampling.class_images import make_class_images
from ..trainer.sampling.schedulers import check as check_scheduler
from ..trainer.settings.config import PriorConfig, SamplingConfig
from . import folders, host, live
from .class_images import STOPPED, ClassImagesObserver, LiveClassView
from .class_view import CLASS_UI_KEY
from .images import MAX_PREVIEWS, preview
from .paths import fingerprint
from .running import first_values, node_schema, runs_once
from .sockets import ClassDatasetSocket, ModelSocket, ModelSource
from .widgets import (
    DEFAULTS,
    batch_size_input,
    drawing_precision_input,
    sampling_inputs,
    scheduler_input,
    size_input,
    widget,
)

GENERATE, FOLDER = "made by the model", "a folder of my own"
PREVIEW_SIDE = 512


class GenerateClassPriors(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamBoothGenerateClassPriors",
            display_name="Generate Class Priors",
            description="Images of other members of the class, such as other dogs. Training on "
            "them too keeps the model from forgetting the class. The base model draws them once; "
            "later runs with the same settings reuse them.",
            search_aliases=[
                "dreambooth",
                "prior preservation",
                "regularization images",
                "class images",
                "reg images",
            ],
            inputs=[
                ModelSocket.Input(
                    "model_source",
                    optional=True,
                    tooltip="The model that draws the class images: the one that will be trained. "
                    f'Not needed for "{FOLDER}".',
                ),
                widget(io.String, DEFAULTS.prior, "prompt", shown_as="class_prompt"),
                io.DynamicCombo.Input(
                    "images",
                    options=[
                        io.DynamicCombo.Option(GENERATE, _generation_inputs()),
                        io.DynamicCombo.Option(FOLDER, _folder_inputs()),
                    ],
                    optional=True,
                    tooltip="Whether the model draws the class images, or you have your own.",
                ),
            ],
            outputs=[
                ClassDatasetSocket.Output(
                    "class_dataset",
                    display_name="class dataset",
                    tooltip="The class images and their prompt. Connect to DreamBooth Train, with "
                    "prior_weight above 0.",
                ),
                io.Image.Output(
                    "preview",
                    display_name="preview",
                    tooltip=f"The first {MAX_PREVIEWS} class images. Connect to Preview Image.",
                ),
            ],
            hidden=[io.Hidden.extra_pnginfo],
        )

    @classmethod
    @first_values
    def fingerprint_inputs(cls, images: Any = None, **others: Any) -> str:
        folder = images.get("folder") if isinstance(images, dict) else None
        return fingerprint([folders.find_photo_folder(folder)]) if folder else ""

    @classmethod
    @runs_once()
    def execute(
        cls,
        class_prompt: str,
        images: dict[str, Any] | None = None,
        model_source: ModelSource | None = None,
    ) -> io.NodeOutput:
        settings = dict(images or {})
        class_images: tuple[Path, ...]
        ui: dict[str, Any] | None = None
        choice = settings.pop("images", None)
        if choice == FOLDER:
            class_images = (folders.find_photo_folder(settings["folder"]),)
        elif choice != GENERATE:
            raise ValueError(f"images must be '{GENERATE}' or '{FOLDER}', got {choice!r}.")
        elif model_source is None:
            raise ValueError(
                "No model_source is connected to draw the class images. Connect Load Base Model, "
                f"or set images to '{FOLDER}'."
            )
        else:
            view = LiveClassView(*host.executing_node(), live.workflow_id(cls))
            with live.showing(view, stopped=STOPPED):
                class_images = _generate(model_source, class_prompt, settings, view)
            ui = {CLASS_UI_KEY: [view.whole()]}
        prior = PriorConfig(prompt=class_prompt, images=class_images)
        found = find_examples(class_images, class_prompt, is_prior=True)
        side = settings.get("resolution") or PREVIEW_SIDE
        observer = host.ComfyObserver()
        shown = preview(found, side, observer)
        observer.show(f"{len(found)} class images")
        return io.NodeOutput(prior, shown, ui=ui)


def _generate(
    source: ModelSource, class_prompt: str, settings: dict[str, Any], view: LiveClassView
) -> tuple[Path, ...]:
    """Draw the class images that do not exist yet, and return all of them."""
    num_images, resolution = settings.pop("num_images"), settings.pop("resolution")
    number_format = settings.pop("precision")
    prior = PriorConfig(
        prompt=class_prompt, num_images=num_images, sampling=SamplingConfig(**settings)
    )
    check_scheduler(prior.sampling.scheduler)
    with host.trainer_device() as device:
        precision.check(number_format, device)
        # The layer that training uses, which an embedding may have recorded.
        clip_skip = source.options.clip_skip or families.default_clip_skip(
            source.path, source.embedding, source.options.loras
        )
        options = replace(source.options, clip_skip=clip_skip)
        formats = NumberFormats(precision=number_format)
        model = families.load(source.path, device, options=options, formats=formats)
        with precision.autocast(number_format, device):
            made = make_class_images(
                model,
                prior,
                folders.class_images_folder(),
                resolution=resolution or model.native_resolution,
                observer=ClassImagesObserver(view),
            )
    view.update(state="finished", share=1.0)
    return tuple(made)


def _generation_inputs() -> list[io.Input]:
    sampling = DEFAULTS.prior.sampling
    return [
        widget(io.Int, DEFAULTS.prior, "num_images", min=1, max=10000),
        scheduler_input(sampling),
        *sampling_inputs(
            sampling,
            seed_note="With another seed, all class images are drawn again.",
            inside_menu=True,
        ),
        size_input(
            "resolution",
            "Width and height of the class images",
            "Use the resolution of the photos.",
            advanced=True,
        ),
        batch_size_input(sampling),
        drawing_precision_input(),
    ]


def _folder_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "folder",
            options=[name for name in folders.photo_folder_menu() if name != folders.TOY_PHOTOS],
            tooltip="A folder of class images under ComfyUI's input or datasets folder: 200 or "
            "more, in different styles, as images of one style teach that style.",
        )
    ]
