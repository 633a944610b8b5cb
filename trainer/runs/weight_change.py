"""How far training moved weights, as they are and in the number format of the file."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import weights
from ..checkpoint import CheckpointWriter, Trained


@dataclass(frozen=True, slots=True)
class WeightChange:
    """How much training changed some weights. Lengths are norms, divided by the norm of the old
    weights."""

    length: float
    """Of the change in the file."""
    share: float
    """The share of weights that changed in the file."""
    length_in_training: float
    """Of the change before rounding to the file's dtype."""
    similarity: float
    """The cosine between both changes: 1 if the file holds exactly what was trained, less if its
    dtype is too coarse; 0 if one of them is 0."""


@torch.no_grad()
def weight_change(writer: CheckpointWriter, trained: Trained) -> WeightChange:
    """Compare trained weights with the original ones, as they are and in the dtype of the file."""
    in_file = in_training = product = length = 0.0
    num_changed = num_weights = 0
    for name, tensor in trained.items():
        old = writer.original.tensor(name).double()
        stored = writer.to_file_dtype(name, tensor).double() - old
        exact = weights.value(tensor).to("cpu", torch.float64) - old
        in_file += stored.square().sum().item()
        in_training += exact.square().sum().item()
        product += (stored * exact).sum().item()
        length += old.square().sum().item()
        num_changed += int(stored.count_nonzero().item())
        num_weights += stored.numel()
    length = max(length, 1e-30)
    return WeightChange(
        length=(in_file / length) ** 0.5,
        share=num_changed / max(num_weights, 1),
        length_in_training=(in_training / length) ** 0.5,
        similarity=product / max((in_file * in_training) ** 0.5, 1e-300),
    )
