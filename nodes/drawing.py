"""What Sample with Scheduler and Compare Settings have in common: widgets, and how they draw."""

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


def drawing_inputs(seed_tooltip: str, steps: io.Input | None = None) -> list[io.Input]:
    """From the prompts to the number format; `steps` in place of the widget for one number."""
    return [
        prompts_input(),
        # Not one menu of several choices: ComfyUI's newer pages do not show those.
        scheduler_input(DEFAULT),
        *map(_further_scheduler, FURTHER),
        *sampling_inputs(DEFAULT, seed_tooltip=seed_tooltip, steps=steps),
        size_input("width", "The images' width"),
        size_input("height", "The images' height"),
        batch_size_input(DEFAULT),
        drawing_precision_input(),
    ]


def draw(
    sources: Sequence[ModelSource],
    steps: Sequence[int],
    *,
    prompts: str,
    width: int,
    height: int,
    precision: Any,
    image_scorer: Callable[[torch.device, Sequence[str]], ImageScorer] | None = None,
    **settings: Any,
) -> Comparison:
    """What the widgets of `drawing_inputs` ask for, from each source in turn. ValueError for what
    cannot be drawn, before a model is loaded."""
    chosen = dict.fromkeys(settings.pop(name) for name in ("scheduler", *FURTHER))
    axes = Axes(
        candidates=_candidates(sources),
        schedulers=[name for name in chosen if name != NONE],
        steps=steps,
        prompts=lines(prompts, "prompts"),
    )
    sampling = SamplingConfig(**settings)
    with host.stepping_aside() as device:
        return compare(
            axes,
            sampling,
            device=device,
            size=(width, height),
            number_format=precision,
            observer=host.ComfyObserver(),
            image_scorer=image_scorer and image_scorer(device, axes.prompts),
        )


def _candidates(sources: Sequence[ModelSource]) -> list[Candidate]:
    """Called by their files; where those are called alike, also by their embeddings'."""
    names = [source.path.stem for source in sources]
    if len(set(names)) < len(names):
        names = [
            f"{name} + {source.embedding.stem}" if source.embedding else name
            for name, source in zip(names, sources, strict=True)
        ]
    return [
        Candidate(label=label, path=source.path, embedding=source.embedding)
        for label, source in zip(distinct(names), sources, strict=True)
    ]


def _further_scheduler(name: str) -> io.Combo.Input:
    return io.Combo.Input(
        name,
        options=[NONE, *SCHEDULERS],
        default=NONE,
        tooltip="Another one to draw all prompts with, to compare; none draws no more. DDIM "
        "forgives an overfitted model most, LMSDiscrete least.",
    )
