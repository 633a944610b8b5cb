"""Sample with Scheduler: the same noise and prompts under one or several noise schedulers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from comfy_api.latest import io

from ..trainer import families, pictures, precision
from ..trainer.config import SamplingConfig
from ..trainer.sampling import sample
from ..trainer.schedulers import SCHEDULERS
from ..trainer.schedulers import check as check_scheduler
from . import host
from .errors import naming_widgets
from .images import to_batch
from .sockets import CATEGORY, ModelSocket, ModelSource
from .widgets import (
    batch_size_input,
    drawing_precision_input,
    lines,
    prompts_input,
    sampling_inputs,
    scheduler_input,
    size_input,
)

NONE = "none"
DEFAULT = SamplingConfig()


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
                prompts_input(),
                # Not one menu of several choices: ComfyUI's newer pages do not show those.
                scheduler_input(DEFAULT),
                *map(_further_scheduler, ("second_scheduler", "third_scheduler")),
                *sampling_inputs(
                    DEFAULT,
                    seed_tooltip="Prompt number i starts from seed + i, with every scheduler.",
                ),
                size_input("width", "The images' width"),
                size_input("height", "The images' height"),
                batch_size_input(DEFAULT),
                drawing_precision_input(),
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
    def execute(
        cls,
        model_source: ModelSource,
        prompts: str,
        scheduler: str,
        second_scheduler: str,
        third_scheduler: str,
        **settings: Any,
    ) -> io.NodeOutput:
        chosen = dict.fromkeys((scheduler, second_scheduler, third_scheduler))
        schedulers = [name for name in chosen if name != NONE]
        for name in schedulers:
            check_scheduler(name)
        texts = lines(prompts, "prompts")
        sampler = _Sampler(model_source, texts, settings)
        images = sampler.draw(schedulers)
        rows = [f"{name} {sampler.sampling.steps}" for name in schedulers]
        sheet = pictures.grid(images, columns=texts, rows=rows)
        return io.NodeOutput(to_batch(images), to_batch([sheet]))


def _further_scheduler(name: str) -> io.Combo.Input:
    return io.Combo.Input(
        name,
        options=[NONE, *SCHEDULERS],
        default=NONE,
        tooltip="Another one to draw all prompts with, to compare; none draws no more. DDIM "
        "forgives an overfitted model most, LMSDiscrete least.",
    )


class _Sampler:
    """A request, checked before the model is loaded."""

    def __init__(
        self, source: ModelSource, prompts: tuple[str, ...], settings: dict[str, Any]
    ) -> None:
        self.source, self.prompts = source, prompts
        self.size = settings.pop("width"), settings.pop("height")
        self.precision = settings.pop("precision")
        self.sampling = SamplingConfig(**settings)

    def draw(self, schedulers: list[str]) -> list[np.ndarray]:
        """The images [H, W, 3] uint8 of each scheduler in turn."""
        with host.stepping_aside() as device:
            precision.check(self.precision, device)
            model = families.load(self.source.path, device, self.source.embedding)
            width, height = (side or model.native_resolution for side in self.size)
            images = []
            with precision.autocast(self.precision, device):
                for scheduler in schedulers:
                    images += sample(
                        model,
                        self.prompts,
                        replace(self.sampling, scheduler=scheduler),
                        size=(width, height),
                        observer=host.ComfyObserver(),
                    )
        return images
