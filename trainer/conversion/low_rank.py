"""The best change of low rank in place of any change of a weight.

Shapes: r rank, and a weight's [out, in] or [out, in, height, width]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPE = torch.float64
"""Squares of singular values that differ by 1e-12 are told apart in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankRule:
    """How much of each layer's change is kept."""

    energy: float = 0.95
    """Share of each layer's change to keep, above 0 up to 1, as the sum of its squares: each layer
    gets as many ranks as it needs for that. 0.9 to 0.99. Full training changes all ranks a little,
    so the file may become as large as the checkpoint; a lower share or a fixed rank makes a small
    one."""
    rank: int | None = None
    """The same rank for every layer instead, such as 32 or 64. Not set: energy decides."""

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise ValueError(f"energy must be above 0 and at most 1, got {self.energy:g}.")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be 1 or more, got {self.rank}.")

    def __str__(self) -> str:
        return f"energy {self.energy!r}" if self.rank is None else f"rank {self.rank}"

    def choose(self, squares: Tensor) -> int:
        """The rank to keep of a change whose singular values have these squares, from the largest
        on. Those that are 0 but for rounding are never kept."""
        smallest = squares[0] * len(squares) * torch.finfo(squares.dtype).eps
        num_real = int((squares > smallest).sum())
        if self.rank is not None:
            return min(self.rank, num_real)
        kept = squares.cumsum(0) / squares.sum()
        return min(int((kept < self.energy).sum()) + 1, num_real)


def approximate(change: Tensor, rule: RankRule) -> tuple[Tensor, Tensor]:
    """`down` [r, in, ...] and `up` [out, r, ...] of a change that is not 0, in float64: `up @ down`
    is the truncated singular value decomposition, and both have the square roots of the singular
    values.

    The eigenvectors of the smaller Gram matrix are much faster than a decomposition of the change
    itself, which is up to nine times as wide as high. Projected on them, nothing is lost but what
    the rule leaves out."""
    matrix = change.to(DTYPE).flatten(1)
    is_wide = matrix.shape[0] <= matrix.shape[1]
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T if is_wide else matrix.T @ matrix)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    rank = rule.choose(squares)
    roots, vectors = squares[:rank] ** 0.25, vectors[:, :rank]
    if is_wide:
        up, down = vectors * roots, (vectors.T @ matrix) / roots[:, None]
    else:
        up, down = (matrix @ vectors) / roots, vectors.T * roots[:, None]
    ones = (1,) * (change.ndim - 2)
    return down.view(rank, *change.shape[1:]), up.view(len(change), rank, *ones)
