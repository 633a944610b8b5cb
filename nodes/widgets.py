"""Widgets. One that stands for a setting takes its name, default and tooltip from the setting's
dataclass."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

from comfy_api.latest import io

from ..trainer.planning.cards import SIZES
from ..trainer.sampling.schedulers import SCHEDULERS
from ..trainer.settings.config import (
    DatasetConfig,
    Precision,
    PriorConfig,
    SamplingConfig,
    TrainingConfig,
)
from ..trainer.settings.descriptions import descriptions
from . import folders

DEFAULTS = TrainingConfig(
    base=Path("toy"),
    dataset=DatasetConfig(photos=(Path(),), prompt="a photo of sks cup"),
    prior=PriorConfig(prompt="a photo of a cup"),
)
"""The settings whose values are the widgets' defaults. Base model and photos are placeholders; the
prompts are those of the embedded photos, the first in the menu of folders."""
NONE = "none"
SEED_MAX = 2**32 - 1
EMBEDDING = "embedding:"
"""What ComfyUI's own prompts have before the name of an embedding."""


def widget(
    kind: Any, settings: Any, name: str, *, shown_as: str = "", note: str = "", **options: Any
) -> io.Input:
    """The widget of the setting `name`, such as `widget(io.Int, DEFAULTS, "steps", min=1)`.

    Its value in `settings` is the default; the tooltip is its description and then `note`. If
    the setting is None, the widget shows its minimum, 0, which means that it is not set.
    `shown_as` is the widget's id if it is not `name`. Optional, so that a workflow that has no
    value for it runs with the default."""
    dataclass: type = type(settings)
    value, text = getattr(settings, name), descriptions(dataclass)[name]
    if value is None:
        value = options["min"]
    if "min" in options:
        text = text.replace("Not set:", "0:")
    tooltip = f"{text} {note}".rstrip()
    options = {"optional": True, **options}
    return kind.Input(shown_as or name, default=value, tooltip=tooltip, **options)


def pop_fields(settings: type, values: dict[str, Any]) -> dict[str, Any]:
    """Remove the values of a dataclass's fields from `values`, and return them."""
    names = [field.name for field in dataclasses.fields(settings) if field.name in values]
    return {name: values.pop(name) for name in names}


def lines(text: str, name: str) -> tuple[str, ...]:
    """The lines that are not empty. Raises ValueError if there are none."""
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not found:
        raise ValueError(f"{name} is empty. Write one prompt per line.")
    for prompt in found:
        check_prompt(prompt, name)
    return found


def check_prompt(prompt: str, name: str) -> None:
    """Raises ValueError for ComfyUI's own notation of an embedding, which the trainer does not
    understand."""
    if EMBEDDING in prompt.lower():
        raise ValueError(
            f"{name} has {prompt!r}, but {EMBEDDING}name is for ComfyUI's own prompts. Write the "
            "placeholder of Textual Inversion Train instead, such as '<my-dog>'."
        )


def prompts_input(tooltip: str) -> io.String.Input:
    return io.String.Input(
        "prompts", multiline=True, default=DEFAULTS.dataset.prompt, optional=True, tooltip=tooltip
    )


def judge_input(*, can_be_none: bool = False, optional: bool = False) -> io.Combo.Input:
    return io.Combo.Input(
        "judge",
        options=[*([NONE] if can_be_none else []), *folders.judge_menu()],
        optional=optional,
        tooltip=f'The model that scores images: "{folders.TOY}" for the toy model; for photos a '
        "CLIP or DINO from ComfyUI's clip_vision folders. Only CLIP with its text encoder scores "
        "how well prompts are followed; DINO is best at telling the subject from others of its "
        "class. Scores of different judges cannot be compared.",
    )


def scheduler_input(sampling: SamplingConfig) -> io.Combo.Input:
    return widget(io.Combo, sampling, "scheduler", options=list(SCHEDULERS))


def sampling_inputs(
    sampling: SamplingConfig,
    *,
    seed_note: str = "",
    inside_menu: bool = False,
    steps: io.Input | None = None,
) -> list[io.Input]:
    """Steps, guidance scale, seed and negative prompt; `steps` replaces the widget for one number
    of steps."""
    return [
        steps or widget(io.Int, sampling, "steps", min=1, max=1000),
        widget(io.Float, sampling, "guidance_scale", min=1.0, max=30.0, step=0.1),
        seed_input(sampling, seed_note, inside_menu=inside_menu),
        widget(io.String, sampling, "negative_prompt", advanced=True),
    ]


def batch_size_input(sampling: SamplingConfig) -> io.Int.Input:
    return widget(io.Int, sampling, "batch_size", min=1, max=64, advanced=True)


def size_input(name: str, what: str, note: str = "", **options: Any) -> io.Int.Input:
    return io.Int.Input(
        name,
        default=0,
        optional=True,
        min=0,
        max=4096,
        step=8,
        tooltip=f"{what} in pixels, a multiple of 8. 0: the model's own size: 512 for Stable "
        f"Diffusion 1, 1024 for XL. In much larger images, things appear twice. {note}".rstrip(),
        **options,
    )


def seed_input(settings: Any, note: str = "", *, inside_menu: bool = False) -> io.Int.Input:
    """Fixed, as ComfyUI would otherwise draw a new seed for each run of the workflow and so train
    again."""
    # In a dynamic menu the page adds no control by itself, and would not remove one of ours when
    # the choice changes.
    control = None if inside_menu else io.ControlAfterGenerate.fixed
    return widget(
        io.Int, settings, "seed", note=note, min=0, max=SEED_MAX, control_after_generate=control
    )


def learning_rate_input(
    settings: Any, name: str, *, minimum: float = 1e-10, **options: Any
) -> io.Float.Input:
    """Keeps 1.23e-6 as typed: without both `step` and `round` the page rounds it to 1.2e-6 or 0."""
    return widget(
        io.Float, settings, name, min=minimum, max=10.0, step=1e-7, round=1e-10, **options
    )


def drawing_precision_input() -> io.Combo.Input:
    """For nodes that draw images and do not train."""
    return io.Combo.Input(
        "precision",
        options=list(get_args(Precision)),
        default="fp32",
        optional=True,
        advanced=True,
        tooltip="Number format of the computation. fp16 and bf16 are faster on a GPU; in fp16 some "
        "models draw black images.",
    )


def vram_input() -> io.Input:
    """Goes last. Workflows that have no value for it, because they are older, mean "off"."""
    return io.Combo.Input(
        "vram",
        options=["auto", "off", *(f"{size} GB" for size in SIZES)],
        default="auto",
        optional=True,
        tooltip="Memory of the graphics card that the run may use. auto: what is free, on an "
        "NVIDIA card. A number: that of a card of this size. Precision, weights, optimizer, "
        "checkpointing and batch size are then chosen so that the run fits; what Optimizer "
        "Settings changes stays as it is there. off: nothing is chosen. The node shows the choice.",
    )
