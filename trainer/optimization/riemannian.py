"""Steps on a sphere: vectors keep their lengths, and only their directions are learned."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

PULL = 1e-4
"""Weight of the pull back to the first direction, the kappa of directional textual inversion."""
SMALLEST = 1e-12
"""Keeps divisions by the length of a vector of zeros finite."""


class RiemannianSGD(Optimizer):
    """Turns the rows of parameters [N, D] against their gradients, along great circles.

    Directional textual inversion (Kim et al., arXiv 2512.13672): the gradient with respect to the
    direction, plus a constant pull to the first direction (a von Mises-Fisher prior), is projected
    onto the tangent of the sphere, and only the direction of what results counts. A step is as long
    as one of Adam's with the same learning rate, in which each of the D numbers changes by up to
    it: a row of length r turns by lr * sqrt(D) / r radians. Rows without a gradient do not turn."""

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["first_direction"] = _directions(parameter)
                parameter.copy_(_turned(parameter, state["first_direction"], group["lr"]))


def _turned(vectors: Tensor, first: Tensor, learning_rate: float) -> Tensor:
    lengths, directions, gradients = _lengths(vectors), _directions(vectors), vectors.grad
    assert gradients is not None
    slopes = lengths * gradients - PULL * first
    slopes = slopes - (slopes * directions).sum(dim=-1, keepdim=True) * directions
    angles = learning_rate * math.sqrt(vectors.shape[-1]) / lengths
    angles = torch.where(gradients.any(dim=-1, keepdim=True), angles, 0.0)
    return lengths * (angles.cos() * directions - angles.sin() * _directions(slopes))


def _lengths(vectors: Tensor) -> Tensor:
    return vectors.norm(dim=-1, keepdim=True).clamp(min=SMALLEST)


def _directions(vectors: Tensor) -> Tensor:
    return vectors / _lengths(vectors)
