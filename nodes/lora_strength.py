"""How strongly the newest LoRA of a model source is applied: the widgets, and what their values
mean."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from comfy_api.latest import io

from .sockets import ModelSource

logger = logging.getLogger(__name__)

LIMIT = 5.0
"""The largest strength in both directions. Far below it, images fall apart."""


def strengthened(source: ModelSource, factor: float) -> ModelSource:
    """The source with the strength of its newest LoRA times `factor`. Warns if it has none."""
    if not source.options.loras:
        warn_of_no_effect([factor])
    return source.strengthened(factor)


def warn_of_no_effect(strengths: Iterable[float]) -> None:
    """Warn that no model source has a LoRA, if a strength is not 1."""
    if any(strength != 1 for strength in strengths):
        logger.warning(
            "lora_strength has no effect, because the model source has no LoRA. Connect a training "
            "with trains set to LoRA, or Apply LoRA."
        )


def strengths_in(text: str) -> tuple[float, ...]:
    """The different numbers in a text. Raises ValueError for anything else."""
    found = text.replace(",", " ").split()
    try:
        strengths = tuple(dict.fromkeys(map(float, found)))
    except ValueError:
        strengths = ()
    if not strengths or not all(abs(strength) <= LIMIT for strength in strengths):
        raise ValueError(
            f"lora_strengths is {text!r}. Write numbers from {-LIMIT:g} to {LIMIT:g} with commas "
            "between them: 1, or 0, 0.5, 1."
        )
    return strengths


def strength_input(name: str, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=1.0, min=-LIMIT, max=LIMIT, step=0.05, optional=True, tooltip=tooltip
    )


def lora_strength_input() -> io.Float.Input:
    return strength_input(
        "lora_strength",
        "How strongly the newest LoRA of the model source changes the model: 1 as it was trained "
        "or applied, 0 not at all. Without a LoRA it has no effect.",
    )


def lora_strengths_input() -> io.String.Input:
    return io.String.Input(
        "lora_strengths",
        default="1",
        optional=True,
        tooltip="How strongly the newest LoRA of each model source changes the model, -5 to 5: one "
        "number, or several with commas between them, such as 0, 0.5, 1. Each strength draws every "
        "image again, except with model sources that have no LoRA.",
    )
