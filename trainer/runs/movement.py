"""Whether what was trained reaches the file: the number format of a file can be too coarse for the
changes of training."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

from ..checkpoint import file_dtype
from ..methods.base import Part, Trainable
from ..precision import dtype_name, is_coarse
from ..training.session import Session
from .outputs import Outputs
from .weight_change import WeightChange

logger = logging.getLogger(__name__)

MIN_SIMILARITY = 0.8
"""Below this cosine between the changes in training and in the file, the user is warned."""
WRITE_AGAIN = (
    "Set output.dtype to fp32 and run the same again: it resumes from the last step and only "
    "writes the file."
)


def notes_of_formats(trainable: Trainable) -> Iterator[str]:
    """For the user, before the first step: which weights are written in a finer number format."""
    for file in trainable.files:
        if file.output.dtype != "as input":
            continue
        stored = {file.original.dtypes[name] for name in trainable.file_tensors(file)}
        coarse = sorted((dtype for dtype in stored if is_coarse(dtype)), key=str)
        for old, new in ((dtype, file_dtype(dtype, file.output.dtype)) for dtype in coarse):
            yield (
                f"The base model stores the weights to train as {dtype_name(old)}, which is too "
                "coarse for the changes of training. They will be written as "
                f"{dtype_name(new)}, so the file will be larger than the base model's."
            )


def require_movement(session: Session, outputs: Outputs) -> dict[str, tuple[float, float]]:
    """How far the weights of each part moved, as `TrainingResult.moved`. Warns if the file holds
    the change only roughly.

    Raises FloatingPointError if a part has NaN or infinite weights, RuntimeError if the weights of
    a part did not change in the file or are beyond the range of its number format.
    """
    moved = outputs.moved()
    for part in session.trainable.parts:
        change = moved[part.name]
        _require_finite(change, part, len(session.reports))
        _require_change(change, part, len(session.reports))
        if change.similarity < MIN_SIMILARITY:
            logger.warning(
                "The file holds the changes of the %s only roughly (cosine %.2f), because its "
                "number format is too coarse for changes so small. Train again with a higher "
                "learning rate (now %g), or with output.dtype fp32.",
                part.name, change.similarity, part.learning_rate,
            )  # fmt: skip
    return {name: (change.length, change.share) for name, change in moved.items()}


def _require_finite(change: WeightChange, part: Part, steps: int) -> None:
    if not math.isfinite(change.length_in_training):
        raise FloatingPointError(
            f"After {steps} steps the {part.name} has weights that are NaN or infinite. Lower its "
            f"learning rate (now {part.learning_rate:g})."
        )
    if not math.isfinite(change.length):
        raise RuntimeError(
            f"After {steps} steps the {part.name} has weights that are too large for the number "
            f"format of the file. {WRITE_AGAIN}"
        )


def _require_change(change: WeightChange, part: Part, steps: int) -> None:
    if change.share > 0:
        return
    text = f"After {steps} steps no weight of the {part.name} differs from the base model's"
    if change.length_in_training > 0:
        raise RuntimeError(
            f"{text} in the file, because its number format is too coarse for changes so small. "
            f"{WRITE_AGAIN} Or raise the learning rate (now {part.learning_rate:g}) and train "
            "again."
        )
    raise RuntimeError(
        f"{text}, although it was trained. Raise its learning rate (now {part.learning_rate:g})."
    )
