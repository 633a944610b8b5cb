"""What DreamBooth Train trains: all weights of a model, or a LoRA."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer.methods.full import FullFineTune
from ..trainer.methods.lora import LoRA
from . import training
from .sockets import ModelSource
from .widgets import learning_rate_input, widget

logger = logging.getLogger(__name__)

FULL_WEIGHTS, A_LORA, BOTH = CHOICES = ("full weights", "LoRA", "full weights and a LoRA")
EXTRACTED_RANK = 32
NOT_SET_IF_0 = ("alpha", "min_rank", "num_vectors", "embedding_learning_rate")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a run trains, starting from which model."""

    source: ModelSource
    """Without a LoRA that is trained further."""
    lora: LoRA | None = None
    """The options of the LoRA, except for those of text encoders. None: full weights."""
    extracted_rank: int | None = None
    """The rank of the LoRA to extract from the trained checkpoint. None: none is extracted."""

    def method(self, options: Mapping[str, Any]) -> FullFineTune | LoRA:
        """The method with these options, which both methods have."""
        if self.lora is None:
            return FullFineTune(**options)
        return replace(self.lora, **options)


def target_of(trains: Mapping[str, Any], source: ModelSource, *, name: str) -> Target:
    """What the values of the menu `trains` describe. `name` is that of the new files. Raises
    ValueError for values that do not go together."""
    choice = trains.get("trains", FULL_WEIGHTS)
    if choice == FULL_WEIGHTS:
        return Target(source=source)
    if choice == BOTH:
        return Target(source=source, extracted_rank=trains["extracted_rank"])
    start: Path | None = None
    if trains["continue_lora"]:
        source, start = _to_continue(source)
    if trains["placeholder"]:
        training.check_embedding_name(name)
    known = {field.name for field in fields(LoRA)}
    values = {key: value for key, value in trains.items() if key in known}
    values |= {key: values[key] or None for key in NOT_SET_IF_0}
    return Target(source=source, lora=LoRA(**values, start=start))


def _to_continue(source: ModelSource) -> tuple[ModelSource, Path]:
    """The source without its newest LoRA, and that LoRA's file."""
    if not source.options.loras:
        raise ValueError(
            "continue_lora is on, but the model source has no LoRA. Connect a training with trains "
            "set to LoRA, or Apply LoRA; or switch continue_lora off to train a new one."
        )
    lora, strength = source.options.loras_with_strengths[-1]
    if strength != 1:
        logger.warning(
            "The strength %g of '%s' is not used: a LoRA is trained further at the strength 1.",
            strength, lora.name,
        )  # fmt: skip
    return source.without_newest_lora(), lora


def require_choice(given: Any) -> None:
    """Raises ValueError for a value that the menu does not have. ComfyUI leaves such a value out,
    and workflows without one, which are older, train full weights."""
    if given is not None and given not in CHOICES:
        raise ValueError(f"trains must be one of {', '.join(CHOICES)}, got {given!r}.")


def trains_input() -> io.Input:
    return io.DynamicCombo.Input(
        "trains",
        options=[
            io.DynamicCombo.Option(FULL_WEIGHTS, []),
            io.DynamicCombo.Option(A_LORA, _lora_inputs()),
            io.DynamicCombo.Option(BOTH, [_extracted_rank_input()]),
        ],
        optional=True,
        tooltip="What is trained. full weights: the whole model, saved as a checkpoint of several "
        "gigabytes; the most likeness. LoRA: a small file with a change of the model, for much "
        "less memory; Load LoRA and other programs read it. full weights and a LoRA: the "
        "checkpoint, and a LoRA that is extracted from it. The values below are the LoRA's.",
    )


def _extracted_rank_input() -> io.Input:
    return io.Int.Input(
        "extracted_rank",
        default=EXTRACTED_RANK,
        min=1,
        max=1280,
        optional=True,
        tooltip="Rank of the LoRA that is extracted from the trained checkpoint: 16 to 128. More "
        "keeps more of the training, and makes a larger file; the node says how much is kept. "
        "Extract LoRA has more settings.",
    )


def _lora_inputs() -> list[io.Input]:
    lora = LoRA()
    return [
        widget(io.Int, lora, "rank", min=1, max=1024),
        widget(io.Float, lora, "alpha", min=0.0, max=1024.0, step=0.5),
        widget(io.Int, lora, "conv_rank", min=0, max=1024),
        io.Boolean.Input(
            "continue_lora",
            default=False,
            optional=True,
            tooltip="Train the newest LoRA of the model source further, with the layers and ranks "
            "that it has, and save it as a new file. Off: a new LoRA is trained, on top of those "
            "of the model source.",
        ),
        widget(io.Float, lora, "dropout", min=0.0, max=0.95, step=0.05, advanced=True),
        widget(io.Int, lora, "min_rank", min=0, max=1024, advanced=True),
        widget(io.Boolean, lora, "dora", advanced=True),
        widget(io.String, lora, "layers", advanced=True),
        widget(io.String, lora, "placeholder", advanced=True),
        widget(io.String, lora, "initializer", advanced=True),
        widget(io.Int, lora, "num_vectors", min=0, max=75, advanced=True),
        learning_rate_input(lora, "embedding_learning_rate", minimum=0.0, advanced=True),
    ]
