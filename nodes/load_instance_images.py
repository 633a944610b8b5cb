"""Load Instance Images: the photos of the subject, from a folder or from the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from comfy_api.latest import io
from torch import Tensor

from ..trainer.data.buckets import bucket_step
from ..trainer.data.examples import Example, find_photos
from ..trainer.data.inspection import Inspection
from ..trainer.data.training_images import Layout
from ..trainer.evaluation.contact_sheet import contact_sheet
from ..trainer.settings.config import Crop, DatasetConfig, Masks
from . import folders, host
from .errors import reword
from .images import MAX_PREVIEWS, preview, save_batches, to_batch
from .masks import IMAGE, MASK, masks_of
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
                            IMAGE,
                            tooltip="Photos from the graph, added to those of the folder. All "
                            "photos of a batch have one size. They are kept as files in ComfyUI's "
                            "temp folder.",
                        ),
                        prefix=IMAGE,
                        min=0,
                        max=MAX_BATCHES,
                    ),
                    tooltip=f"Photos from the graph, added to those of the folder: up to "
                    f"{MAX_BATCHES} batches, each of one size, or a list of any sizes. They have "
                    "no captions, so the prompt is used. To train on these alone, set folder to "
                    f'"{FROM_GRAPH}".',
                ),
                widget(
                    io.Combo,
                    dataset,
                    "masks",
                    shown_as="use_masks",
                    note="The masks below count as such files.",
                    options=list(get_args(Masks)),
                    advanced=True,
                ),
                widget(
                    io.Float, dataset, "unmasked_weight", min=0.0, max=1.0, step=0.05, advanced=True
                ),
                widget(io.Int, dataset, "random_backgrounds", min=0, max=64, advanced=True),
                io.Autogrow.Input(
                    "masks",
                    template=io.Autogrow.TemplatePrefix(
                        io.Mask.Input(
                            MASK,
                            tooltip="Where the subject is in the images of the same number: white "
                            "is the subject. One mask for each image, or one for all, of the same "
                            "shape as the images. Remove Background makes such masks; invert those "
                            "of Load Image.",
                        ),
                        prefix=MASK,
                        min=0,
                        max=MAX_BATCHES,
                    ),
                    tooltip="Where the subject is in the images: mask0 belongs to image0, and so "
                    "on. The masks of photos in the folder are files beside them, such as "
                    "photo-mask.png for photo.jpg.",
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
                io.Image.Output(
                    "contact_sheet",
                    display_name="contact sheet",
                    tooltip=f"The first {MAX_PREVIEWS} photos as they are trained: cropped, and "
                    "with the parts outside their masks dark and striped. Connect to Preview "
                    "Image. With resolution 0, as for a model of 512 pixels; random crops as with "
                    "seed 0.",
                ),
            ],
        )

    @classmethod
    @first_values
    def fingerprint_inputs(cls, folder: str, **others: Any) -> str:
        return "" if folder == FROM_GRAPH else fingerprint([folders.find_photo_folder(folder)])

    @classmethod
    @runs_once(images=list, masks=list)
    def execute(
        cls,
        folder: str,
        instance_prompt: str,
        resolution: int,
        use_masks: Masks,
        images: dict[str, list[Tensor]] | None = None,
        masks: dict[str, list[Tensor]] | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        check_prompt(instance_prompt, "instance_prompt")
        photos = [] if folder == FROM_GRAPH else [folders.find_photo_folder(folder)]
        images = images or {}
        subjects = masks_of(images, masks or {})
        photos += [
            save_batches(batches, folders.temp_folder("photos"), subjects.get(name, ()))
            for name, batches in images.items()
        ]
        if not photos:
            raise ValueError(
                f"folder is '{FROM_GRAPH}', and no images are connected. Choose a folder, or "
                "connect an image."
            )
        dataset = DatasetConfig(
            photos=tuple(photos),
            prompt=instance_prompt,
            resolution=resolution or None,
            masks=use_masks,
            **settings,
        )
        found = find_photos(dataset)
        observer, side = host.ComfyObserver(), resolution or PREVIEW_SIDE
        inspection = Inspection(
            replace(dataset, allow_upscaling=True), Layout(side, bucket_step(side), latent_factor=1)
        )
        shown = preview(found, side, observer, color=dataset.background, inspection=inspection)
        observer.show(_count(found))
        for line in inspection.advice():
            host.tell(f"Advice: {reword(line)}")
        sheet = to_batch([contact_sheet(inspection.images)])
        return io.NodeOutput(dataset, shown, len(found), sheet)


def _count(photos: Sequence[Example]) -> str:
    masks = sum(photo.mask is not None for photo in photos)
    text = "1 photo" if len(photos) == 1 else f"{len(photos)} photos"
    return f"{text}, {masks} with masks" if masks else text
