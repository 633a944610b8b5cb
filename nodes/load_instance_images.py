"""Load Instance Images: the photos of the subject, from a folder or from the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from comfy_api.latest import io
from torch import Tensor

from ..trainer.data.examples import find_examples
from ..trainer.settings.config import Crop, DatasetConfig
from . import folders, host
from .errors import naming_widgets
from .images import MAX_PREVIEWS, preview, save_batch
from .paths import fingerprint
from .sockets import CATEGORY, DatasetSocket
from .widgets import check_prompt

FROM_GRAPH = "none, only the images below"
MAX_BATCHES = 16
PREVIEW_SIDE = 512
"""Pixels, where the resolution is left to the model."""
DEFAULT = DatasetConfig(photos=(Path(),), prompt="a photo of sks dog")


class LoadInstanceImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamBoothLoadInstanceImages",
            display_name="Load Instance Images",
            category=CATEGORY,
            essentials_category=CATEGORY,
            description="The photos of the subject to be taught, and the prompt that is to mean it."
            " Three to six photos of different places and angles do well, 20 for a face.",
            search_aliases=["dreambooth", "dataset", "photos", "training images", "folder"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=[*folders.photo_folder_menu(), FROM_GRAPH],
                    tooltip="A folder under ComfyUI's input or datasets folder. A text file beside "
                    "a photo (photo.jpg, photo.txt) is its caption, in place of the prompt.",
                ),
                io.String.Input(
                    "instance_prompt",
                    default=DEFAULT.prompt,
                    tooltip="What the photos show: the class with a rare word before it, such as "
                    "'a photo of sks dog', or the placeholder of Textual Inversion Train. Prompts "
                    "with these words draw the subject later.",
                ),
                io.Int.Input(
                    "resolution",
                    default=DEFAULT.resolution or 0,
                    min=0,
                    max=2048,
                    step=8,
                    tooltip="Shorter side of a training image, in pixels. 0 takes the model's own, "
                    "512 for Stable Diffusion 1. Lower saves memory; below 256 spoils the result.",
                ),
                io.Combo.Input(
                    "crop",
                    options=list(get_args(Crop)),
                    default=DEFAULT.crop,
                    tooltip="What is kept of a photo that is not square: its centre, or a place "
                    "drawn once per photo.",
                ),
                io.Boolean.Input(
                    "buckets",
                    default=DEFAULT.buckets,
                    tooltip="Keep each photo's own shape, in steps of 64 pixels at about the same "
                    "area, rather than cropping it to a square.",
                ),
                io.Boolean.Input(
                    "mirror",
                    default=DEFAULT.mirror,
                    tooltip="Also train on each photo's mirror image. Wrong for faces, lettering "
                    "and one-sided things.",
                ),
                io.Boolean.Input(
                    "allow_upscaling",
                    default=DEFAULT.allow_upscaling,
                    advanced=True,
                    tooltip="Enlarge photos smaller than the resolution rather than refuse them. "
                    "They will look soft.",
                ),
                io.String.Input(
                    "background",
                    default=DEFAULT.background,
                    advanced=True,
                    tooltip="Colour put behind transparent pixels: a name such as white, or "
                    "#rrggbb.",
                ),
                io.Autogrow.Input(
                    "images",
                    template=io.Autogrow.TemplatePrefix(
                        io.Image.Input(
                            "image",
                            tooltip="Photos from the graph, each batch of one size, beside those "
                            "of the folder. They are kept as files in ComfyUI's temp folder.",
                        ),
                        prefix="image",
                        min=0,
                        max=MAX_BATCHES,
                    ),
                    tooltip=f"Photos from the graph, up to {MAX_BATCHES} batches, beside those of "
                    "the folder.",
                ),
            ],
            outputs=[
                DatasetSocket.Output(
                    "dataset",
                    display_name="dataset",
                    tooltip="The photos and how they are brought to size, for DreamBooth Train and "
                    "Textual Inversion Train.",
                ),
                io.Image.Output(
                    "preview",
                    display_name="preview",
                    tooltip=f"The middle of the first {MAX_PREVIEWS} photos, to see that the right "
                    "ones were found; also for Compare Settings and Score Images.",
                ),
                io.Int.Output(
                    "num_images",
                    display_name="number of images",
                    tooltip="How many photos were found. Mirror images do not count.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, **others: Any) -> str:
        return "" if folder == FROM_GRAPH else fingerprint([folders.find_photo_folder(folder)])

    @classmethod
    @naming_widgets()
    def execute(
        cls,
        folder: str,
        instance_prompt: str,
        resolution: int,
        images: dict[str, Tensor] | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        check_prompt(instance_prompt, "instance_prompt")
        photos = [] if folder == FROM_GRAPH else [folders.find_photo_folder(folder)]
        batches = [batch for batch in (images or {}).values() if batch is not None]
        photos += [save_batch(batch, folders.temp_folder("photos")) for batch in batches]
        if not photos:
            raise ValueError(
                f"folder is '{FROM_GRAPH}', and no images are connected. Choose a folder, or "
                "connect an image."
            )
        dataset = DatasetConfig(
            photos=tuple(photos), prompt=instance_prompt, resolution=resolution or None, **settings
        )
        found = [example.path for example in find_examples(photos, instance_prompt)]
        shown = preview(
            found, resolution or PREVIEW_SIDE, host.ComfyObserver(), color=dataset.background
        )
        return io.NodeOutput(dataset, shown, len(found))
