"""Truncated singular value decompositions, checked against numpy's."""

import numpy as np
import pytest
import torch

from trainer.conversion.low_rank import RankRule, approximate

SHAPES = [(40, 24), (24, 40), (16, 8, 3, 3), (64, 4, 1, 1), (7, 7)]


def random(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def squares_of(change: torch.Tensor) -> np.ndarray:
    return np.linalg.svd(change.flatten(1).numpy(), compute_uv=False) ** 2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("energy", [0.3, 0.9, 0.95, 0.99])
def test_the_fewest_ranks_keep_the_energy_and_lose_no_more_than_they_must(shape, energy):
    change = random(*shape)
    down, up = approximate(change, RankRule(energy=energy))
    squares = squares_of(change)
    rank = len(down)
    assert down.shape == (rank, *shape[1:])
    assert up.shape == (shape[0], rank, *[1] * (len(shape) - 2))
    assert squares[:rank].sum() >= energy * squares.sum() > squares[: rank - 1].sum()
    lost = (change.flatten(1) - up.flatten(1) @ down.flatten(1)).square().sum().item()
    # Eckart and Young: no matrix of this rank is closer.
    assert lost == pytest.approx(squares[rank:].sum(), rel=1e-9, abs=1e-20)


@pytest.mark.parametrize("shape", SHAPES)
def test_both_factors_have_the_square_roots_of_the_singular_values(shape):
    change = random(*shape)
    down, up = approximate(change, RankRule(rank=3))
    values = np.sqrt(squares_of(change))[:3]
    for gram in (up.flatten(1).T @ up.flatten(1), down.flatten(1) @ down.flatten(1).T):
        assert gram.numpy() == pytest.approx(np.diag(values), abs=1e-9 * values[0])


def test_a_rank_is_limited_by_the_change_itself():
    change = random(30, 3) @ random(3, 20)
    for rule in (RankRule(rank=8), RankRule(energy=1.0), RankRule(energy=1 - 1e-9)):
        down, up = approximate(change, rule)
        assert len(down) == 3
        assert (up @ down - change).abs().max() < 1e-12 * change.abs().max()
    assert len(approximate(change, RankRule(rank=2))[0]) == 2
    assert len(approximate(random(30, 20), RankRule(rank=64))[0]) == 20


def test_tiny_changes_are_not_taken_for_rounding():
    change = 1e-12 * random(12, 9)
    down, up = approximate(change, RankRule(energy=1.0))
    assert len(down) == 9
    assert (up @ down - change).abs().max() < 1e-23


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"energy": 0.0}, "energy must be above 0 and at most 1, got 0."),
        ({"energy": 1.5}, "energy must be above 0 and at most 1, got 1.5."),
        ({"energy": float("nan")}, "energy must be above 0 and at most 1, got nan."),
        ({"rank": 0}, "rank must be 1 or more, got 0."),
    ],
)
def test_rules_that_keep_nothing_are_refused(values, message):
    with pytest.raises(ValueError) as caught:
        RankRule(**values)
    assert str(caught.value) == message


def test_rules_are_told_apart():
    rules = [RankRule(), RankRule(energy=0.9), RankRule(rank=32), RankRule(rank=33, energy=0.9)]
    assert [*map(str, rules)] == ["energy 0.95", "energy 0.9", "rank 32", "rank 33"]
