"""Turning vectors on a sphere, against the formulas of the paper in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from trainer.optimization.riemannian import PULL, RiemannianSGD

RATE, WIDTH = 2e-3, 48


def vectors(*lengths: float, seed: int = 0) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(lengths), WIDTH, generator=generator)
    return nn.Parameter(nn.functional.normalize(rows) * torch.tensor(lengths)[:, None])


def optimizer_of(parameter: nn.Parameter) -> RiemannianSGD:
    return RiemannianSGD([{"params": [parameter], "lr": RATE}])


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def expected(vector: np.ndarray, gradient: np.ndarray, first: np.ndarray) -> np.ndarray:
    """In the plane of the direction and the projected gradient, by the rotation of a plane."""
    length, direction = np.linalg.norm(vector), unit(vector)
    onto_tangent = np.eye(len(vector)) - np.outer(direction, direction)
    against = -unit(onto_tangent @ (length * gradient - PULL * first))
    angle = RATE * math.sqrt(len(vector)) / length
    plane = np.outer(against, direction) - np.outer(direction, against)
    in_plane = np.outer(direction, direction) + np.outer(against, against)
    rotation = np.eye(len(vector)) + math.sin(angle) * plane + (math.cos(angle) - 1) * in_plane
    return rotation @ vector


def test_each_row_turns_by_its_angle_against_its_gradient():
    parameter = vectors(0.4, 1.5)
    first = [unit(row) for row in parameter.detach().double().numpy()]
    optimizer = optimizer_of(parameter)
    for step in range(3):
        before = parameter.detach().double().numpy()
        # Small gradients, so that the pull to the first direction matters.
        parameter.grad = 1e-4 * torch.randn(2, WIDTH, generator=torch.manual_seed(9 + step))
        gradients = parameter.grad.double().numpy()
        optimizer.step()
        rows = [expected(*each) for each in zip(before, gradients, first, strict=True)]
        np.testing.assert_allclose(parameter.detach().numpy(), np.stack(rows), atol=1e-6)


def test_lengths_stay_over_a_thousand_steps():
    parameter = vectors(0.4, 1.5)
    optimizer = optimizer_of(parameter)
    generator = torch.Generator().manual_seed(1)
    for _ in range(1000):
        parameter.grad = torch.randn(2, WIDTH, generator=generator)
        optimizer.step()
    assert parameter.detach().norm(dim=1).tolist() == pytest.approx([0.4, 1.5], rel=1e-4)


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_a_step_is_as_long_as_one_of_adam(size: float):
    """With gradients of any size, of which each number is equally large."""
    parameter, other = vectors(1.0), vectors(1.0)
    direction = parameter.detach()[0]
    signs = torch.where(torch.arange(WIDTH) % 2 == 0, 1.0, -1.0)
    gradient = size * (signs - signs @ direction * direction)  # along the sphere
    before = parameter.detach().clone()
    parameter.grad = gradient[None].clone()
    other.grad = size * signs[None]
    optimizer_of(parameter).step()
    torch.optim.AdamW([other], lr=RATE, weight_decay=0.0).step()
    lengths = [float((each.detach() - before).norm()) for each in (parameter, other)]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-3)


def test_rows_without_a_gradient_do_not_turn():
    parameter = vectors(0.4, 0.4)
    before = parameter.detach().clone()
    parameter.grad = torch.zeros_like(parameter)
    parameter.grad[1] = 1e-9
    optimizer_of(parameter).step()
    assert torch.equal(parameter[0], before[0])
    assert not torch.allclose(parameter[1], before[1])


def test_it_finds_the_direction_of_a_target():
    parameter, target = vectors(0.4), vectors(1.0, seed=5).detach()
    optimizer = optimizer_of(parameter)
    for _ in range(300):
        optimizer.zero_grad()
        (1 - torch.cosine_similarity(parameter, target)).sum().backward()
        optimizer.step()
    assert torch.cosine_similarity(parameter, target).item() > 0.99


def test_a_saved_state_continues_with_the_same_first_direction():
    whole, halted = vectors(0.4), vectors(0.4)
    gradients = 1e-5 * torch.randn(4, 1, WIDTH, generator=torch.manual_seed(3))
    optimizer = optimizer_of(whole)
    for gradient in gradients:
        whole.grad = gradient.clone()
        optimizer.step()
    optimizer = optimizer_of(halted)
    for gradient in gradients[:2]:
        halted.grad = gradient.clone()
        optimizer.step()
    resumed = nn.Parameter(halted.detach().clone())
    other = optimizer_of(resumed)
    other.load_state_dict(optimizer.state_dict())
    for gradient in gradients[2:]:
        resumed.grad = gradient.clone()
        other.step()
    assert torch.equal(resumed, whole)
