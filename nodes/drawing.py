"""What Sample with Scheduler and Compare Settings share: their widgets, and how they draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy_api.latest import io

from ..trainer.evaluation.comparison import Axes, Candidate, Comparison, compare, distinct
from ..trainer.evaluation.scores import ImageScorer
from ..trainer.sampling.schedulers import SCHEDULERS
from ..trainer.settings.config import SamplingConfig
from . import host
from .lora_strength import warn_of_no_effect
from .sockets import ModelSource
from .widgets import (
    NONE,
    batch_size_input,
    drawing_precision_input,
    lines,
    prompts_input,
    sampling_inputs,
    scheduler_input,
    size_input,
)

DEFAULT = SamplingConfig()
FURTHER = ("second_scheduler", "third_scheduler")


PROMPTS = (
    "One prompt per line, one image for each. The subject appears only where a prompt contains the "
    "words of the instance prompt, or the placeholder of Textual Inversion Train."
)


def drawing_inputs(prompts_note: str = "", steps: io.Input | None = None) -> list[io.Input]:
    """The widgets from the prompts to the number format; `steps` replaces the widget for one number
    of steps."""
    return [
        prompts_input(f"{PROMPTS} {prompts_note}".rstrip()),
        # Not one menu with several choices, which newer pages of ComfyUI do not show.
        scheduler_input(DEFAULT),
        *map(_further_scheduler, FURTHER),
        *sampling_inputs(DEFAULT, steps=steps),
        size_input("width", "Width of the images"),
        size_input("height", "Height of the images"),
        batch_size_input(DEFAULT),
        drawing_precision_input(),
    ]


def draw(
    sources: Sequence[ModelSource],
    steps: Sequence[int],
    lora_strengths: Sequence[float] = (1.0,),
    *,
    prompts: str,
    width: int,
    height: int,
    precision: Any,
    image_scorer: Callable[[torch.device, Sequence[str]], ImageScorer] | None = None,
    **settings: Any,
) -> Comparison:
    """Draw the images that the widgets of `drawing_inputs` describe, with each source in turn, and
    with those that have a LoRA at each strength. Raises ValueError for invalid inputs before a
    model is loaded."""
    chosen = dict.fromkeys(settings.pop(name) for name in ("scheduler", *FURTHER))
    axes = Axes(
        candidates=_candidates(sources, lora_strengths),
        schedulers=[name for name in chosen if name != NONE],
        steps=steps,
        prompts=lines(prompts, "prompts"),
    )
    sampling = SamplingConfig(**settings)
    with host.trainer_device() as device:
        return compare(
            axes,
            sampling,
            device=device,
            size=(width, height),
            number_format=precision,
            observer=host.ComfyObserver(),
            image_scorer=image_scorer and image_scorer(device, axes.prompts),
        )


def _candidates(sources: Sequence[ModelSource], strengths: Sequence[float]) -> list[Candidate]:
    """Labelled with the names of their files; if two are the same, also with those of their
    embeddings; and with the strengths of their LoRAs, if there are several."""
    if not any(source.options.loras for source in sources):
        warn_of_no_effect(strengths)
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        names = [
            f"{name} + {source.embedding.stem}" if source.embedding else name
            for name, source in zip(names, sources, strict=True)
        ]
    return [
        Candidate(
            label=f"{label}, strength {strength:g}" if len(used) > 1 else label,
            path=source.path,
            embedding=source.embedding,
            options=source.strengthened(strength).options,
        )
        for label, source in zip(distinct(names), sources, strict=True)
        for used in [strengths if source.options.loras else [1.0]]
        for strength in used
    ]


def _further_scheduler(name: str) -> io.Combo.Input:
    return io.Combo.Input(
        name,
        options=[NONE, *SCHEDULERS],
        default=NONE,
        optional=True,
        tooltip="Another scheduler to compare with. It draws every image again; none: no other "
        "scheduler.",
    )
