"""Load Instance Images: the photos of the subject, from a folder or from the graph."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io
from torch import Tensor

from ..trainer.data.examples import find_examples
from ..trainer.settings.config import Crop, DatasetConfig
from . import folders, host
from .images import MAX_PREVIEWS, preview, save_batches
from .paths import fingerprint
from .running import first_values, node_schema, runs_once
from .sockets import DatasetSocket
from .widgets import DEFAULTS, check_prompt, widget

FROM_GRAPH = "none, only the images below"
MAX_BATCHES = 16
PREVIEW_SIDE = 512
"""Pixels, if resolution is 0."""


class LoadInstanceImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        dataset = DEFAULTS.dataset
        return node_schema(
            node_id="DreamBoothLoadInstanceImages",
            display_name="Load Instance Images",
            description="Photos of the subject to learn, and the prompt that describes them. Use "
            "three to six photos with different places and angles, or about 20 of a face.",
            search_aliases=[
                "dreambooth",
                "training dataset folder",
                "training images",
                "training photos",
                "load photos",
                "captions",
            ],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=[*folders.photo_folder_menu(), FROM_GRAPH],
                    tooltip="The folder of photos, inside ComfyUI's input or datasets folder. To "
                    "make one, drop photos on this node. Photos in folders inside it are not read. "
                    "A caption that leaves out the words for the subject does not teach them.",
                ),
                widget(io.String, dataset, "prompt", shown_as="instance_prompt"),
                widget(io.Int, dataset, "resolution", min=0, max=2048, step=8),
                widget(io.Combo, dataset, "crop", options=list(get_args(Crop))),
                widget(io.Boolean, dataset, "buckets"),
                widget(io.Boolean, dataset, "mirror"),
                widget(io.Boolean, dataset, "allow_upscaling", advanced=True),
                widget(io.String, dataset, "background", advanced=True),
                io.Autogrow.Input(
                    "images",
                    template=io.Autogrow.TemplatePrefix(
                        io.Image.Input(
                            "image",
                            tooltip="Photos from the graph, added to those of the folder. All "
                            "photos of a batch have one size. They are kept as files in ComfyUI's "
                            "temp folder.",
                        ),
                        prefix="image",
                        min=0,
                        max=MAX_BATCHES,
                    ),
                    tooltip=f"Photos from the graph, added to those of the folder: up to "
                    f"{MAX_BATCHES} batches, each of one size, or a list of any sizes. They have "
                    "no captions, so the prompt is used. To train on these alone, set folder to "
                    f'"{FROM_GRAPH}".',
                ),
            ],
            outputs=[
                DatasetSocket.Output(
                    "dataset",
                    display_name="dataset",
                    tooltip="The photos and how they are cropped and resized. Connect to "
                    "DreamBooth Train or Textual Inversion Train.",
                ),
                io.Image.Output(
                    "preview",
                    display_name="preview",
                    tooltip=f"The middle of the first {MAX_PREVIEWS} photos, as squares. Connect "
                    "to Preview Image, to check that these are the right photos, or to photos of "
                    "Compare Settings and Score Images.",
                ),
                io.Int.Output(
                    "num_images",
                    display_name="number of images",
                    tooltip="How many photos were found, without mirror images.",
                ),
            ],
        )

    @classmethod
    @first_values
    def fingerprint_inputs(cls, folder: str, **others: Any) -> str:
        return "" if folder == FROM_GRAPH else fingerprint([folders.find_photo_folder(folder)])

    @classmethod
    @runs_once(images=list)
    def execute(
        cls,
        folder: str,
        instance_prompt: str,
        resolution: int,
        images: dict[str, list[Tensor]] | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        check_prompt(instance_prompt, "instance_prompt")
        photos = [] if folder == FROM_GRAPH else [folders.find_photo_folder(folder)]
        connected = (images or {}).values()
        photos += [save_batches(batches, folders.temp_folder("photos")) for batches in connected]
        if not photos:
            raise ValueError(
                f"folder is '{FROM_GRAPH}', and no images are connected. Choose a folder, or "
                "connect an image."
            )
        dataset = DatasetConfig(
            photos=tuple(photos), prompt=instance_prompt, resolution=resolution or None, **settings
        )
        found = [example.path for example in find_examples(photos, instance_prompt)]
        observer = host.ComfyObserver()
        shown = preview(found, resolution or PREVIEW_SIDE, observer, color=dataset.background)
        observer.show("1 photo" if len(found) == 1 else f"{len(found)} photos")
        return io.NodeOutput(dataset, shown, len(found))
