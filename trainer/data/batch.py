"""Examples that go through the model together, with what was drawn for each.

Shapes: B batch, C latent channels, h w latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import hardware
from ..families.base import Framing


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples whose latents have the same shape, with the random draws for each."""

    latents: Tensor
    """[B, C, h, w]."""
    noise: Tensor
    """[B, C, h, w]."""
    times: Tensor
    """[B]: how noisy; see `trainer/noise.py`."""
    weights: Tensor
    """[B]: the factor of each example's squared error in the step's loss."""
    is_prior: Tensor
    """[B] bool: whether an example is a class image rather than a photo."""
    captions: list[str]
    framings: list[Framing]
    place_weights: Tensor | None = None
    """[B, 1, h, w]: how much each place counts in an example's squared error, 1 on average. None:
    no example has a mask."""
    num_taught: int = 0
    """How many examples, the last ones, are trained on the teacher's answers."""

    def sums(self, losses: Tensor) -> Tensor:
        """The sums of the examples' losses [B]: of photos, and of class images [2]."""
        photos = losses.masked_fill(self.is_prior, 0).sum()
        return torch.stack([photos, losses.masked_fill(~self.is_prior, 0).sum()])

    def without_loss(self) -> Batch:
        """The same batch, whose errors count nothing."""
        return replace(self, weights=torch.zeros_like(self.weights))

    def to(self, device: torch.device) -> Batch:
        return Batch(
            hardware.move(self.latents, device),
            hardware.move(self.noise, device),
            hardware.move(self.times, device),
            hardware.move(self.weights, device),
            hardware.move(self.is_prior, device),
            self.captions,
            self.framings,
            None if self.place_weights is None else hardware.move(self.place_weights, device),
            self.num_taught,
        )


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of all examples, whose latents have the same shape."""
    return Batch(
        torch.cat([batch.latents for batch in batches]),
        torch.cat([batch.noise for batch in batches]),
        torch.cat([batch.times for batch in batches]),
        torch.cat([batch.weights for batch in batches]),
        torch.cat([batch.is_prior for batch in batches]),
        [caption for batch in batches for caption in batch.captions],
        [framing for batch in batches for framing in batch.framings],
        _join_place_weights(batches),
        sum(batch.num_taught for batch in batches),
    )


def _join_place_weights(batches: Sequence[Batch]) -> Tensor | None:
    if all(batch.place_weights is None for batch in batches):
        return None
    return torch.cat([
        torch.ones_like(batch.latents[:, :1])
        if batch.place_weights is None
        else batch.place_weights
        for batch in batches
    ])  # fmt: skip
