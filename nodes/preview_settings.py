"""Preview Settings: what a training node draws while it trains."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.config import PreviewConfig, SamplingConfig
from ..trainer.schedulers import check as check_scheduler
from .sockets import CATEGORY, PreviewSocket
from .widgets import lines, prompts_input, sampling_inputs, scheduler_input

DEFAULT = PreviewConfig()


class PreviewSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamBoothPreviewSettings",
            display_name="Preview Settings",
            category=CATEGORY,
            essentials_category=CATEGORY,
            description="Images that DreamBooth Train and Textual Inversion Train draw while they "
            "train, to see when the subject is learned. They never change the result.",
            search_aliases=["dreambooth", "samples", "validation", "preview while training"],
            inputs=[
                prompts_input(),
                io.Int.Input(
                    "every",
                    default=DEFAULT.every,
                    min=1,
                    max=100000,
                    tooltip="Steps between previews. Each takes as long as a few training steps.",
                ),
                scheduler_input(DEFAULT.sampling),
                *sampling_inputs(
                    DEFAULT.sampling,
                    seed_tooltip="Preview number i starts from seed + i, each time the same, so "
                    "that they can be compared.",
                ),
            ],
            outputs=[
                PreviewSocket.Output(
                    "preview_settings",
                    display_name="preview settings",
                    tooltip="For DreamBooth Train or Textual Inversion Train.",
                )
            ],
        )

    @classmethod
    def execute(cls, prompts: str, every: int, **sampling: Any) -> io.NodeOutput:
        check_scheduler(sampling["scheduler"])
        return io.NodeOutput(
            PreviewConfig(
                prompts=lines(prompts, "prompts"), every=every, sampling=SamplingConfig(**sampling)
            )
        )
