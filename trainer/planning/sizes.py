"""Bytes on the device of weights and of what belongs to them, by number format."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .. import weights
from ..eight_bit import SCALE_DTYPE
from ..families.shapes import NetworkShape
from ..settings.config import TrainingConfig

UPDATE_BYTES: Mapping[str, tuple[float, float]] = {
    "AdamW": (4, 12),
    "AdamW8bit": (4, 12),
    "Lion": (8, 14),
    "Adafactor without momentum": (8, 14),
}
"""Bytes per number that exist for a while when a weight is updated, with its gradient: of an fp32
weight, and of one in another format. By optimizer."""
OTHER_UPDATE_BYTES = (17, 23)
PULL_BYTES = (10, 12)
"""The same when it is pulled back: its gradient, its new values and those before training, in a
16-bit file's format and in fp32."""


def weight_bytes(config: TrainingConfig, weight: Tensor) -> int:
    """Bytes on the device of a trained weight."""
    if config.weights == "fp32" or not weights.is_large(weight):
        return 4 * weight.numel()
    has_rest = config.weights == "24 bit" and not config.offload
    return (3 if has_rest else 2) * weight.numel()


def average_bytes(config: TrainingConfig, weight: Tensor) -> int:
    """Bytes of a weight's moving average."""
    is_fp32 = config.weights == "fp32" or not weights.is_large(weight)
    return (4 if is_fp32 else 3) * weight.numel()


def frozen_bytes(shape: NetworkShape, precision: str, *, in_8_bits: bool = False) -> int:
    """Bytes of a frozen network: in the precision of the computation or in 8 bits, except for norms
    and embeddings."""
    tables = set(map(id, shape.embeddings()))
    return sum(
        4 * p.numel() if p.ndim < 2 or id(p) in tables else _frozen_bytes(p, precision, in_8_bits)
        for p in shape.parameters()
    )


def _frozen_bytes(weight: Tensor, precision: str, in_8_bits: bool) -> int:  # noqa: FBT001
    if in_8_bits:
        return weight.numel() + SCALE_DTYPE.itemsize * len(weight)
    return (4 if precision == "fp32" else 2) * weight.numel()


def gradient_bytes(config: TrainingConfig, shape: NetworkShape) -> int:
    """Bytes of a network's gradients, which have the number formats that it computes with."""
    return sum(
        (4 if config.weights == "fp32" or not weights.is_large(p) else 2) * p.numel()
        for p in shape.parameters()
    )


def update_bytes(config: TrainingConfig, size: int) -> int:
    """Bytes that updating one weight of `size` numbers needs for a while, with its gradient."""
    in_fp32, stored = UPDATE_BYTES.get(config.optimizer.name, OTHER_UPDATE_BYTES)
    if config.optimizer.anchor:
        in_fp32, stored = max(in_fp32, PULL_BYTES[0]), max(stored, PULL_BYTES[1])
    return int((in_fp32 if config.weights == "fp32" else stored) * size)
