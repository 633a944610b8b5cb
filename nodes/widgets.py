"""Widgets that several nodes show: how images are drawn, seeds, learning rates, number formats."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..trainer.sampling.schedulers import SCHEDULERS
from ..trainer.settings.config import Precision, SamplingConfig
from . import folders

NONE = "none"
SEED_MAX = 2**32 - 1
EMBEDDING = "embedding:"
"""How a learned word begins in ComfyUI's own prompts."""


def lines(text: str, name: str) -> tuple[str, ...]:
    """The lines with something on them; ValueError if there is none."""
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not found:
        raise ValueError(f"{name} is empty. Write one prompt per line.")
    for prompt in found:
        check_prompt(prompt, name)
    return found


def check_prompt(prompt: str, name: str) -> None:
    """ValueError for a learned word as ComfyUI's own prompts have it: here those are mere
    letters."""
    if EMBEDDING in prompt.lower():
        raise ValueError(
            f"{name} has {prompt!r}, but {EMBEDDING}name is for ComfyUI's own prompts. Write the "
            "placeholder of Textual Inversion Train instead, such as '<my-dog>'."
        )


def prompts_input() -> io.String.Input:
    return io.String.Input(
        "prompts",
        multiline=True,
        default="a photo of sks dog",
        tooltip="One prompt per line, one image for each. The words of the instance prompt stand "
        "for the subject, or the placeholder of Textual Inversion Train.",
    )


def judge_input(*, can_be_none: bool = False, optional: bool = False) -> io.Combo.Input:
    return io.Combo.Input(
        "judge",
        options=[*([NONE] if can_be_none else []), *folders.judge_menu()],
        optional=optional,
        tooltip=f"What scores: '{folders.TOY}' in the toy's world; for photos a CLIP or DINO of "
        "ComfyUI's clip_vision folders. CLIP with its text encoder reads prompts too, DINO tells "
        "the subject from others of its class. Numbers of different judges cannot be compared.",
    )


def scheduler_input(sampling: SamplingConfig) -> io.Combo.Input:
    return io.Combo.Input(
        "scheduler",
        options=list(SCHEDULERS),
        default=sampling.scheduler,
        tooltip="Noise scheduler the images are drawn with.",
    )


def sampling_inputs(
    sampling: SamplingConfig,
    *,
    seed_tooltip: str,
    inside_menu: bool = False,
    steps: io.Input | None = None,
) -> list[io.Input]:
    """Steps, guidance scale, seed and negative prompt, as `SamplingConfig` calls them; `steps` in
    place of the widget for one number of them."""
    return [
        steps or _steps_input(sampling),
        io.Float.Input(
            "guidance_scale",
            default=sampling.guidance_scale,
            min=1.0,
            max=30.0,
            step=0.1,
            tooltip="How strongly the prompt is followed; 1 is no guidance, above 15 colours burn "
            "out. 7.5 is usual, 4 for the toy model.",
        ),
        seed_input(sampling.seed, seed_tooltip, inside_menu=inside_menu),
        io.String.Input(
            "negative_prompt",
            default=sampling.negative_prompt,
            advanced=True,
            tooltip="What the images should not show. Empty for none.",
        ),
    ]


def _steps_input(sampling: SamplingConfig) -> io.Int.Input:
    return io.Int.Input(
        "steps",
        default=sampling.steps,
        min=1,
        max=1000,
        tooltip="Denoising steps per image: 20 to 50 are usual, about 100 help when images come "
        "out noisy.",
    )


def batch_size_input(sampling: SamplingConfig) -> io.Int.Input:
    return io.Int.Input(
        "batch_size",
        default=sampling.batch_size,
        min=1,
        max=64,
        advanced=True,
        tooltip="Images drawn at once, 1 to 16: more is faster and takes more memory.",
    )


def size_input(name: str, what: str, **more: Any) -> io.Int.Input:
    return io.Int.Input(
        name,
        default=0,
        min=0,
        max=4096,
        step=8,
        tooltip=f"{what}, in pixels, a multiple of 8; 0 takes the model's own, 512 for Stable "
        "Diffusion 1.",
        **more,
    )


def seed_input(default: int, tooltip: str, *, inside_menu: bool = False) -> io.Int.Input:
    """Fixed: ComfyUI would otherwise draw a new one for each Queue, and so train anew."""
    # Inside a dynamic menu the page adds no control by itself, and would not remove one of ours
    # when the choice changes.
    control = None if inside_menu else io.ControlAfterGenerate.fixed
    return io.Int.Input(
        "seed",
        default=default,
        min=0,
        max=SEED_MAX,
        control_after_generate=control,
        tooltip=tooltip,
    )


def learning_rate_input(
    name: str, default: float, tooltip: str, *, minimum: float = 1e-10, advanced: bool = False
) -> io.Float.Input:
    """Keeps 1.23e-6 as it is typed: without both `step` and `round` the page rounds it to 1.2e-6,
    or to 0."""
    return io.Float.Input(
        name,
        default=default,
        min=minimum,
        max=10.0,
        step=1e-7,
        round=1e-10,
        tooltip=tooltip,
        advanced=advanced or None,
    )


def precision_input(default: str, tooltip: str, *, advanced: bool = False) -> io.Combo.Input:
    return io.Combo.Input(
        "precision",
        options=list(get_args(Precision)),
        default=default,
        tooltip=tooltip,
        advanced=advanced or None,
    )


def drawing_precision_input() -> io.Combo.Input:
    """Of nodes that draw and do not train."""
    return precision_input(
        "fp32",
        "Number format of the computation. fp16 and bf16 are faster on a GPU.",
        advanced=True,
    )
