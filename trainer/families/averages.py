"""Running averages of the weights (EMA) that some checkpoints contain beside the weights. Training
does not update them, so a trained checkpoint must not contain them: a program that prefers them
would use the untrained model."""

from __future__ import annotations

import re

from .files import CheckpointFile

_EMA = re.compile(r"ema|ema_.*|.*_ema")
"""A part of a name, between dots: `model_ema.`, `ema_model.`, `first_stage_model.model_ema.`."""
_NUM_PARTS = 2
"""The parts of a name that may say so. Later ones belong to a network's own layers."""


def leave_out_averages(source: CheckpointFile) -> None:
    """Forget the running averages of a checkpoint, and note that for the user."""
    keys = [key for key in source.shapes if _is_average(key)]
    if not keys:
        return
    num_bytes = source.leave_out(keys)
    source.notes.append(
        f"'{source.name}' also contains a running average of its weights (EMA, "
        f"{len(keys)} tensors such as '{keys[0]}', {num_bytes / 1e9:.1f} GB). The weights "
        "themselves are trained; the average would be that of the untrained model, and is left "
        "out of trained checkpoints."
    )


def _is_average(key: str) -> bool:
    parts = key.split(".")[:_NUM_PARTS]
    return any(_EMA.fullmatch(part) for part in parts)
