"""Sample with Scheduler: the same prompts and noise with one or several noise schedulers."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.evaluation import plots
from .drawing import draw, drawing_inputs
from .images import to_batch
from .lora_strength import lora_strength_input
from .running import node_schema, runs_per_item
from .sockets import ModelSocket, ModelSource


class SampleWithScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamBoothSampleWithScheduler",
            display_name="Sample with Scheduler",
            description="Draw each prompt with one or several noise schedulers, from the same "
            "noise, and show the images side by side.",
            search_aliases=[
                "dreambooth",
                "DDIM",
                "PNDM",
                "LMSDiscrete",
                "compare schedulers",
                "generate images",
                "test trained model",
            ],
            inputs=[
                ModelSocket.Input(
                    "model_source",
                    tooltip="The model to draw with: from DreamBooth Train, Textual Inversion "
                    "Train or Load Base Model. A checkpoint from Load Base Model comes without its "
                    "embedding, so prompts cannot contain the placeholder.",
                ),
                *drawing_inputs(),
                lora_strength_input(),
            ],
            outputs=[
                io.Image.Output(
                    "images",
                    display_name="images",
                    is_output_list=True,
                    tooltip="One image per scheduler and prompt: all prompts of the first "
                    "scheduler, then those of the next. Connect to Preview Image or Save Image.",
                ),
                io.Image.Output(
                    "grid",
                    display_name="comparison grid",
                    is_output_list=True,
                    tooltip="All images in one, with titles: a row per scheduler, a column per "
                    "prompt.",
                ),
            ],
        )

    @classmethod
    @runs_per_item(prompts="\n".join)
    def execute(
        cls, model_source: ModelSource, steps: int, lora_strength: float = 1.0, **widgets: Any
    ) -> io.NodeOutput:
        comparison = draw([model_source], [steps], [lora_strength], **widgets)
        rows = [f"{row.scheduler} {row.steps}" for row in comparison.rows]
        sheet = plots.grid(comparison.images, columns=comparison.prompts, rows=rows)
        return io.NodeOutput(to_batch(comparison.images), to_batch([sheet]))
