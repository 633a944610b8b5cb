"""Load Base Model, Model from Graph, Use Trained Model: where checkpoints come from and go to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer.families import family_of
from ..trainer.families.files import CheckpointFile
from ..trainer.families.layouts import UNET
from . import folders, host
from .paths import fingerprint
from .sockets import CATEGORY, ModelSocket, ModelSource

FULL_WIDTH = 320
"""Channels of the U-Net's first layer in every published Stable Diffusion."""


def open_source(path: Path, embedding: Path | None = None) -> ModelSource:
    """FileNotFoundError or ValueError for a file that cannot be trained, told from its table of
    contents alone."""
    file = CheckpointFile(path)
    family = family_of(file).name
    width = file.shape(f"{UNET}input_blocks.0.0.weight", 4)[0]
    is_full_size = width == FULL_WIDTH
    return ModelSource(path=path, family=family, is_full_size=is_full_size, embedding=embedding)


class LoadBaseModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamBoothLoadBaseModel",
            display_name="Load Base Model",
            category=CATEGORY,
            essentials_category=CATEGORY,
            description="The Stable Diffusion 1 checkpoint to start training from. Nothing is "
            "loaded yet: the file is read when training or sampling begins.",
            search_aliases=["dreambooth", "checkpoint", "toy model", "finetune", "base"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=folders.checkpoint_menu(),
                    tooltip="A Stable Diffusion 1.x checkpoint from ComfyUI's checkpoints folders, "
                    f"or the tiny model that comes along: '{folders.TOY}' trains in about two "
                    "minutes without a GPU.",
                )
            ],
            outputs=[
                ModelSocket.Output(
                    "model_source",
                    display_name="model source",
                    tooltip="The checkpoint, for DreamBooth Train, Textual Inversion Train, "
                    "Generate Class Priors, Sample with Scheduler, Compare Settings and Use "
                    "Trained Model.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str) -> str:
        return fingerprint([folders.find_checkpoint(checkpoint)])

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        return io.NodeOutput(open_source(folders.find_checkpoint(checkpoint)))


class ModelFromGraph(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamBoothModelFromGraph",
            display_name="Model from Graph",
            category=CATEGORY,
            essentials_category=CATEGORY,
            description="Train from models as they are in this graph: merged, or with LoRAs "
            "applied. They are written to a checkpoint in ComfyUI's temp folder, which is emptied "
            "when ComfyUI starts or ends.",
            search_aliases=["dreambooth", "merge", "lora", "base model", "checkpoint"],
            inputs=[
                io.Model.Input("model", tooltip="A Stable Diffusion 1 diffusion model."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
            ],
            outputs=[
                ModelSocket.Output(
                    "model_source",
                    display_name="model source",
                    tooltip="The three as one checkpoint, for DreamBooth Train and the other nodes "
                    "that take a model source.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any) -> io.NodeOutput:
        return io.NodeOutput(open_source(host.save_model(model, clip, vae)))


class UseTrainedModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamBoothUseTrainedModel",
            display_name="Use Trained Model",
            category=CATEGORY,
            essentials_category=CATEGORY,
            description="The trained checkpoint as ComfyUI's own MODEL, CLIP and VAE, for KSampler "
            "and everything else in the same graph.",
            search_aliases=["dreambooth", "load trained", "ksampler", "checkpoint"],
            inputs=[
                ModelSocket.Input(
                    "model_source",
                    tooltip="From DreamBooth Train or Load Base Model. The embedded toy model is "
                    "too small for KSampler: draw from it with Sample with Scheduler.",
                )
            ],
            outputs=[
                io.Model.Output("MODEL", tooltip="The diffusion model, for KSampler."),
                io.Clip.Output(
                    "CLIP",
                    tooltip="The text encoder, for CLIP Text Encode. A new word of Textual "
                    "Inversion Train is embedding:name there.",
                ),
                io.Vae.Output("VAE", tooltip="Turns latents into images and back."),
            ],
        )

    @classmethod
    def execute(cls, model_source: ModelSource) -> io.NodeOutput:
        if not model_source.is_full_size:
            raise ValueError(
                f"'{model_source.path.name}' is a small model like the embedded toy, and ComfyUI's "
                "own samplers take only models of the published size. Draw from it with Sample "
                "with Scheduler."
            )
        return io.NodeOutput(*host.load_model(model_source.path))
