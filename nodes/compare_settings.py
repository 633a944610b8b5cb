"""Compare Settings: the same prompts and noise with several checkpoints, noise schedulers and
numbers of steps, as one image and, with a judge, as scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io

from ..trainer.evaluation import encoders
from ..trainer.evaluation.scores import ImageScorer, table
from . import folders, host
from .drawing import DEFAULT, draw, drawing_inputs
from .images import MAX_PREVIEWS, to_arrays, to_batch
from .lora_strength import lora_strengths_input, strengths_in
from .running import node_schema, runs_once
from .sockets import ModelSocket, ModelSource, SavesSocket
from .widgets import NONE, judge_input

MAX_SOURCES = 8
MAX_STEPS = 1000
UNSCORED = (
    "Compare Settings had no judge, so there are no scores. Choose one, and connect photos of the "
    "subject."
)


def _flat(values: Sequence[Sequence[ModelSource]]) -> list[ModelSource]:
    return [source for sources in values for source in sources]


class CompareSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamBoothCompareSettings",
            display_name="Compare Settings",
            description="Draw the same prompts from the same noise with several checkpoints or "
            "LoRAs, noise schedulers, numbers of steps and strengths, and show all images in one. "
            "With a judge and photos of the subject they are scored, to find the best stage of a "
            "run.",
            search_aliases=[
                "dreambooth",
                "xy plot",
                "compare checkpoints",
                "compare models",
                "compare lora strengths",
                "best step",
                "overfitting",
                "score",
            ],
            inputs=[*_links(), *_widgets()],
            outputs=_outputs(),
        )

    @classmethod
    @runs_once(
        saves=_flat,
        model_sources=list,
        photos=to_arrays,
        prompts="\n".join,
        steps=", ".join,
        lora_strengths=", ".join,
    )
    def execute(
        cls,
        steps: str,
        judge: str = NONE,
        lora_strengths: str = "1",
        saves: Sequence[ModelSource] = (),
        model_sources: dict[str, list[ModelSource]] | None = None,
        photos: list[np.ndarray] | None = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        linked = _flat(list((model_sources or {}).values()))
        sources = list(dict.fromkeys([*linked, *(saves or ())]))
        if not sources:
            raise ValueError(
                "No model is connected. Connect saves of DreamBooth Train, or a model source to "
                "model_sources."
            )
        comparison = draw(
            sources,
            step_counts(steps),
            strengths_in(lora_strengths),
            image_scorer=_image_scorer(judge, photos),
            **widgets,
        )
        chart = comparison.chart()
        return io.NodeOutput(
            to_batch(comparison.images),
            to_batch([comparison.grid()]),
            to_batch([chart]) if chart else host.no_result(UNSCORED),
            table(comparison.scored) if chart else host.no_result(UNSCORED),
        )


def step_counts(text: str) -> tuple[int, ...]:
    """The different whole numbers in a text. Raises ValueError for anything else."""
    found = text.replace(",", " ").split()
    numbers = [int(part) for part in found if part.isascii() and part.isdecimal()]
    if not found or len(numbers) < len(found) or not all(1 <= n <= MAX_STEPS for n in numbers):
        raise ValueError(
            f"steps is {text!r}. Write whole numbers from 1 to {MAX_STEPS} with commas between "
            "them: 25, or 10, 25, 100."
        )
    return tuple(dict.fromkeys(numbers))


def _image_scorer(
    judge: str, photos: list[np.ndarray] | None
) -> Callable[[torch.device, Sequence[str]], ImageScorer] | None:
    if judge == NONE:
        return None
    if photos is None:
        raise ValueError(
            f"judge is {judge}, but there are no photos to compare the images with. Connect photos "
            f"of the subject, such as the preview of Load Instance Images, or set judge to {NONE}."
        )
    path = folders.find_judge(judge)
    return lambda device, prompts: ImageScorer(encoders.load(path, device), photos, prompts)


def _links() -> list[io.Input]:
    return [
        SavesSocket.Input(
            "saves",
            optional=True,
            tooltip="All stages of a run, from DreamBooth Train or Textual Inversion Train. Set "
            "save_every and keep_saves there before training: deleted stages cannot be compared.",
        ),
        io.Autogrow.Input(
            "model_sources",
            template=io.Autogrow.TemplatePrefix(
                ModelSocket.Input(
                    "model_source",
                    tooltip="Another model to compare with, such as the base model.",
                ),
                prefix="model_source",
                min=0,
                max=MAX_SOURCES,
            ),
            tooltip=f"Up to {MAX_SOURCES} other models, drawn before the saves: the base model "
            "from Load Base Model, or results of other runs. A checkpoint from Load Base Model "
            "comes without its embedding, so prompts cannot contain the placeholder.",
        ),
        io.Image.Input(
            "photos",
            optional=True,
            tooltip="Photos of the subject for the judge: the preview of Load Instance Images, "
            f"which has the first {MAX_PREVIEWS} photos as squares. Not used without a judge.",
        ),
    ]


def _widgets() -> list[io.Input]:
    steps = io.String.Input(
        "steps",
        default=str(DEFAULT.steps),
        optional=True,
        tooltip="Denoising steps per image, 1 to 1000: one number, or several with commas between "
        "them, such as 10, 25, 100. Each number draws every image again; few steps give rough "
        "images.",
    )
    prompts_note = (
        "Use four or more places that no photo shows: with the training prompt alone, a model that "
        "draws nothing but the photos looks best."
    )
    return [
        *drawing_inputs(prompts_note, steps),
        judge_input(can_be_none=True, optional=True),
        lora_strengths_input(),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Image.Output(
            "images",
            display_name="images",
            tooltip="One image per setting and prompt: all prompts of the first setting, then "
            "those of the next. Connect to Preview Image or Save Image.",
        ),
        io.Image.Output(
            "grid",
            display_name="comparison grid",
            tooltip="All images in one, with titles and scores: a row per setting, a column per "
            "prompt.",
        ),
        io.Image.Output(
            "chart",
            display_name="score chart",
            tooltip="The mean scores of each setting, as bars. Connect to Preview Image. Without a "
            "judge it is empty, and nodes connected to it are left out.",
        ),
        io.String.Output(
            "scores",
            display_name="scores",
            tooltip="The mean scores as a table, a line per setting. Connect to Preview as Text. "
            "Needs a judge.",
        ),
    ]
