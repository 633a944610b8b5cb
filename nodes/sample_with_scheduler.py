"""Sample with Scheduler: the same noise and prompts under one or several noise schedulers."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.evaluation import plots
from .drawing import draw, drawing_inputs
from .errors import naming_widgets
from .images import to_batch
from .sockets import CATEGORY, ModelSocket, ModelSource


class SampleWithScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamBoothSampleWithScheduler",
            display_name="Sample with Scheduler",
            category=CATEGORY,
            essentials_category=CATEGORY,
            description="Draw each prompt from a trained checkpoint with one or several noise "
            "schedulers, from the same starting noise, and lay the images side by side.",
            search_aliases=["dreambooth", "DDIM", "PNDM", "LMSDiscrete", "compare schedulers"],
            inputs=[
                ModelSocket.Input(
                    "model_source",
                    tooltip="The model that draws: of DreamBooth Train, Textual Inversion Train or "
                    "Load Base Model.",
                ),
                *drawing_inputs("Prompt number i starts from seed + i, with every scheduler."),
            ],
            outputs=[
                io.Image.Output(
                    "images",
                    display_name="images",
                    tooltip="One image per scheduler and prompt: all prompts of the first "
                    "scheduler, then those of the next.",
                ),
                io.Image.Output(
                    "grid",
                    display_name="comparison grid",
                    tooltip="All of them in one picture: a row per scheduler, a column per prompt, "
                    "with titles.",
                ),
            ],
        )

    @classmethod
    @naming_widgets()
    def execute(cls, model_source: ModelSource, steps: int, **widgets: Any) -> io.NodeOutput:
        comparison = draw([model_source], [steps], **widgets)
        rows = [f"{row.scheduler} {row.steps}" for row in comparison.rows]
        sheet = plots.grid(comparison.images, columns=comparison.prompts, rows=rows)
        return io.NodeOutput(to_batch(comparison.images), to_batch([sheet]))
