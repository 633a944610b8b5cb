"""Save as Checkpoint: a model source with its LoRAs and its VAE as one file."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from comfy_api.latest import io

from ..trainer.conversion.merging import merge_once
from ..trainer.conversion.pairs import Model
from ..trainer.settings.config import FileDtype, OutputConfig
from . import folders, host
from .models import open_source
from .running import node_schema, runs_once
from .sockets import ModelSocket, ModelSource
from .widgets import widget

DEFAULT = replace(OutputConfig(), name="merged")


class SaveCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamBoothSaveCheckpoint",
            display_name="Save as Checkpoint",
            description="Save a model source with its LoRAs and its VAE as a new checkpoint, which "
            "every program can use. Weights that no LoRA changes are copied exactly.",
            search_aliases=[
                "dreambooth",
                "merge lora into checkpoint",
                "bake lora",
                "apply lora checkpoint",
                "save model",
            ],
            is_output_node=True,
            inputs=[
                ModelSocket.Input(
                    "model_source",
                    tooltip="The model to save: a base model with a LoRA, from Extract LoRA or "
                    "DreamBooth Train. Model from Graph is saved for good.",
                ),
                widget(
                    io.String,
                    DEFAULT,
                    "name",
                    note="The checkpoint is saved in checkpoints/dreambooth.",
                ),
                io.Combo.Input(
                    "file_dtype",
                    options=list(get_args(FileDtype)),
                    default=DEFAULT.dtype,
                    optional=True,
                    advanced=True,
                    tooltip="Number format of the weights that a LoRA changes. as input: that of "
                    "the base model's file. All other weights keep theirs.",
                ),
            ],
            outputs=[
                ModelSocket.Output(
                    "saved_source",
                    display_name="model source",
                    tooltip="The new checkpoint. Connect to DreamBooth Train to train it further, "
                    "or to Use Trained Model.",
                ),
                io.String.Output(
                    "checkpoint_name",
                    display_name="checkpoint name",
                    tooltip="The name of the checkpoint in the menu of Load Checkpoint.",
                ),
            ],
        )

    @classmethod
    @runs_once()
    def execute(
        cls,
        model_source: ModelSource,
        name: str = DEFAULT.name,
        file_dtype: FileDtype = DEFAULT.dtype,
    ) -> io.NodeOutput:
        found = merge_once(
            Model(model_source.path, model_source.options),
            OutputConfig(folder=folders.trained_folder(), name=name, dtype=file_dtype),
            host.ComfyObserver(),
        )
        file_name = folders.checkpoint_name(found.path)
        host.tell(f"{'Found' if found.reused else 'Wrote'} {file_name}.")
        return io.NodeOutput(open_source(found.path, model_source.embedding), file_name)
