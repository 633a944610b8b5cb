"""Load Base Model, Model from Graph and Use Trained Model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, get_args

from comfy_api.latest import io

from ..trainer.families import DEFAULT_OPTIONS, family_of
from ..trainer.families.clip_skip import choose_clip_skip, files_of
from ..trainer.families.files import CheckpointFile
from ..trainer.families.layouts import UNET
from ..trainer.settings.config import ModelOptions, PredictionType
from . import folders, graph_models, host
from .lora_strength import lora_strength_input, strengthened
from .paths import fingerprint
from .running import first_values, node_schema, runs_once
from .sockets import ModelSocket, ModelSource
from .widgets import DEFAULTS, widget

logger = logging.getLogger(__name__)

LOADERS = {"model": "Load Diffusion Model", "clip": "Load CLIP", "vae": "Load VAE"}
"""ComfyUI's nodes for the parts that a checkpoint may lack."""
FULL_WIDTH = 320
"""Channels of the U-Net's first layer in Stable Diffusion."""


def open_source(
    path: Path, embedding: Path | None = None, options: ModelOptions = DEFAULT_OPTIONS
) -> ModelSource:
    """Check a checkpoint without reading its weights. Raises FileNotFoundError, or ValueError if it
    cannot be trained."""
    file = CheckpointFile(path)
    family = family_of(file)
    width = file.shape(f"{UNET}input_blocks.0.0.weight", 4)[0]
    return ModelSource(
        path=path,
        family=family,
        is_full_size=width == FULL_WIDTH,
        embedding=embedding,
        options=options,
    )


class LoadBaseModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamBoothLoadBaseModel",
            display_name="Load Base Model",
            description="The Stable Diffusion checkpoint to start training from (1, 2 or XL). The "
            "file is read when training or sampling starts, and never changed.",
            search_aliases=[
                "dreambooth",
                "checkpoint",
                "toy model",
                "train finetune base model",
                "sd15 stable diffusion 1.5",
                "sdxl stable diffusion xl",
                "illustrious pony noobai animagine",
            ],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=folders.checkpoint_menu(),
                    tooltip="A checkpoint (.safetensors or .ckpt) of Stable Diffusion 1, 2 or XL, "
                    "or of a model made from one, such as Illustrious, NoobAI or Pony, from "
                    f'ComfyUI\'s checkpoints folders; or "{folders.TOY}": a tiny model that comes '
                    "with these nodes and trains in about two minutes without a GPU. Use it to try "
                    "the nodes and their settings; it draws small pictures of a simple world, not "
                    "photos.",
                ),
                widget(
                    io.Combo,
                    DEFAULTS,
                    "prediction_type",
                    options=list(get_args(PredictionType)),
                    optional=True,
                    advanced=True,
                ),
                widget(
                    io.Int,
                    DEFAULTS,
                    "clip_skip",
                    note="Training, class images and drawing from this model source all use it.",
                    min=0,
                    max=12,
                    optional=True,
                    advanced=True,
                ),
            ],
            outputs=[
                ModelSocket.Output(
                    "model_source",
                    display_name="model source",
                    tooltip="The checkpoint. Connect to DreamBooth Train, Textual Inversion Train, "
                    "Generate Class Priors, Sample with Scheduler, Compare Settings or Use Trained "
                    "Model.",
                )
            ],
        )

    @classmethod
    @first_values
    def fingerprint_inputs(cls, checkpoint: str, **others: Any) -> str:
        return fingerprint([folders.find_checkpoint(checkpoint)])

    @classmethod
    @runs_once()
    def execute(
        cls,
        checkpoint: str,
        prediction_type: PredictionType = DEFAULTS.prediction_type,
        clip_skip: int = 0,
    ) -> io.NodeOutput:
        options = ModelOptions(prediction_type=prediction_type, clip_skip=clip_skip or None)
        return io.NodeOutput(open_source(folders.find_checkpoint(checkpoint), options=options))


class ModelFromGraph(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamBoothModelFromGraph",
            display_name="Model from Graph",
            description="Train from the models of this workflow, such as merged models or models "
            "with LoRAs. They are saved as a checkpoint in ComfyUI's temp folder, which ComfyUI "
            "empties when it starts or ends.",
            search_aliases=[
                "dreambooth",
                "train merge",
                "train merged model",
                "lora",
                "base model",
                "checkpoint",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The MODEL of a Stable Diffusion 1, 2 or XL checkpoint, after merging "
                    "or LoRAs. Other kinds of models are refused.",
                ),
                io.Clip.Input(
                    "clip",
                    tooltip="The CLIP of the same checkpoint. Those of other kinds do not fit. The "
                    "layer of CLIP Set Last Layer is kept (clip skip).",
                ),
                io.Vae.Input(
                    "vae",
                    tooltip="The VAE of the same checkpoint. A poor VAE blurs all images of the "
                    "trained model.",
                ),
            ],
            outputs=[
                ModelSocket.Output(
                    "model_source",
                    display_name="model source",
                    tooltip="All three as one checkpoint. Connect to DreamBooth Train or another "
                    "node with a model source.",
                )
            ],
        )

    @classmethod
    @runs_once()
    def execute(cls, model: Any = None, clip: Any = None, vae: Any = None) -> io.NodeOutput:
        given = {"model": model, "clip": clip, "vae": graph_models.usable_vae(vae)}
        for name, loader in LOADERS.items():
            if given[name] is None:
                raise ValueError(
                    f"{name} is empty: the checkpoint or node that is connected to it contains no "
                    f"{name.upper()}. Connect {loader} to {name} instead."
                )
        metadata = graph_models.metadata(model, clip, vae)
        if names := graph_models.left_out(model, clip):
            logger.warning(graph_models.LEFT_OUT.format(", ".join(names)))
        return io.NodeOutput(open_source(host.save_model(model, clip, vae, metadata)))


class UseTrainedModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamBoothUseTrainedModel",
            display_name="Use Trained Model",
            description="Load the trained model as ComfyUI's own MODEL, CLIP and VAE, with its "
            "LoRAs applied, for KSampler and all other nodes. The CLIP uses the layer that the "
            "model was trained with (clip skip).",
            search_aliases=[
                "dreambooth",
                "load trained model",
                "load finetuned checkpoint",
                "load lora",
                "ksampler",
            ],
            inputs=[
                ModelSocket.Input(
                    "model_source",
                    tooltip="From DreamBooth Train, or from Load Base Model to compare. The toy "
                    "model is too small for KSampler: use Sample with Scheduler.",
                ),
                lora_strength_input(),
            ],
            outputs=[
                io.Model.Output("MODEL", tooltip="The diffusion model. Connect to KSampler."),
                io.Clip.Output(
                    "CLIP",
                    tooltip="The text encoder. Connect to CLIP Text Encode, and write the words of "
                    "the instance prompt there; instead of a placeholder, write "
                    '"embedding:name".',
                ),
                io.Vae.Output("VAE", tooltip="The VAE. Connect to VAE Decode."),
            ],
        )

    @classmethod
    @runs_once()
    def execute(cls, model_source: ModelSource, lora_strength: float = 1.0) -> io.NodeOutput:
        if not model_source.is_full_size:
            raise ValueError(
                f"'{folders.checkpoint_name(model_source.path)}' is a small model like the "
                "embedded toy, and ComfyUI's own samplers need a full-size model. Use Sample with "
                "Scheduler instead."
            )
        path, embedding, family = model_source.path, model_source.embedding, model_source.family
        options = strengthened(model_source, lora_strength).options
        constants = family.read_constants(CheckpointFile(path), options.prediction_type)
        usual = family.usual_clip_skip
        files = files_of(path, embedding, options.loras)
        clip_skip = choose_clip_skip(options.clip_skip, files, usual)
        return io.NodeOutput(
            *host.load_model(
                path,
                is_v=constants.is_v_prediction,
                zero_snr=constants.has_zero_terminal_snr,
                clip_skip=None if clip_skip == usual else clip_skip,
                loras=options.loras_with_strengths,
            )
        )
