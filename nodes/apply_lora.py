"""Apply LoRA: a model source as a LoRA file changes it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.families import open_model
from . import folders
from .lora_strength import strength_input
from .paths import fingerprint
from .running import first_values, node_schema, runs_once
from .sockets import ModelSocket, ModelSource


class ApplyLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamBoothApplyLoRA",
            display_name="Apply LoRA",
            description="Change a model source by a LoRA file, to train on top of it, to train the "
            "LoRA further, or to draw with it. No file is written, and several can follow each "
            "other.",
            search_aliases=[
                "dreambooth",
                "lora",
                "load lora",
                "continue lora",
                "lora strength",
            ],
            inputs=[
                ModelSocket.Input(
                    "model_source",
                    tooltip="The model that the LoRA changes: from Load Base Model or a training.",
                ),
                io.Combo.Input(
                    "lora",
                    options=folders.lora_menu(),
                    tooltip="A LoRA for this kind of model from ComfyUI's loras folders. Those of "
                    "DreamBooth Train are in the folder dreambooth.",
                ),
                strength_input(
                    "strength",
                    "How strongly the LoRA changes the model: 1 as trained, 0 not at all.",
                ),
            ],
            outputs=[
                ModelSocket.Output(
                    "changed_source",
                    display_name="model source",
                    tooltip="The model with the LoRA. Connect to DreamBooth Train, Sample with "
                    "Scheduler or another node with a model source.",
                )
            ],
        )

    @classmethod
    @first_values
    def fingerprint_inputs(cls, lora: str = "", **others: Any) -> str:
        return fingerprint([folders.find_lora(lora)]) if lora else ""

    @classmethod
    @runs_once()
    def execute(cls, model_source: ModelSource, lora: str, strength: float = 1.0) -> io.NodeOutput:
        changed = model_source.with_lora(folders.find_lora(lora), strength)
        open_model(changed.path, changed.options)  # Refuses a file that does not fit.
        return io.NodeOutput(changed)
