"""Decides whether numbers show a claim: it compares the difference of two groups of models with the
spread over the seeds. Pure arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

SEEDS_NEEDED = 3
NOT_MEASURED, TOO_FEW = OPEN = ("not measured", "too few seeds")
Expectation = Literal["more", "same", "no less"]
Values = Mapping[int, float]
"""By seed."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one comparison."""

    num_seeds: int
    difference: float = 0.0
    """The difference of the means over the seeds. 0 if there are fewer than two."""
    bar: float = 0.0
    """A difference counts if it exceeds this: twice the larger of the two groups' standard
    deviations over the seeds, and at least the resolution of the measure."""
    verdict: str


def compare(
    more: Sequence[Values],
    less: Sequence[Values],
    *,
    expected: Expectation,
    resolution: float,
    join: Callable[[Sequence[float]], float] = statistics.mean,
) -> Finding:
    """Compare two groups. Each group's models are joined into one value per seed, for the seeds
    that all of them have."""
    seeds = sorted(set.intersection(*(set(values) for values in [*more, *less])))
    if len(seeds) < 2:
        verdict = TOO_FEW if seeds else NOT_MEASURED
        return Finding(num_seeds=len(seeds), verdict=verdict)
    groups = [
        [join([values[seed] for values in group]) for seed in seeds] for group in (more, less)
    ]
    difference = statistics.mean(groups[0]) - statistics.mean(groups[1])
    bar = max(2 * max(map(statistics.stdev, groups)), resolution)
    return Finding(
        num_seeds=len(seeds),
        difference=difference,
        bar=bar,
        verdict=_verdict(difference, bar, expected) if len(seeds) >= SEEDS_NEEDED else TOO_FEW,
    )


def _verdict(difference: float, bar: float, expected: Expectation) -> str:
    if expected == "same":
        return "shown" if abs(difference) <= bar else "not shown"
    if expected == "no less":
        return "shown" if difference >= -bar else "not shown"
    if difference > bar:
        return "shown"
    return "the opposite" if difference < -bar else "not shown"


def summary(verdicts: Sequence[str]) -> str:
    """One phrase that sums up all comparisons of an experiment."""
    decided = [verdict for verdict in verdicts if verdict not in OPEN]
    if not decided:
        return "Not decided yet"
    is_partial = len(decided) < len(verdicts)
    return _phrase(decided) + ", as far as it has been measured" * is_partial


def _phrase(verdicts: Sequence[str]) -> str:
    num_shown = verdicts.count("shown")
    if num_shown == len(verdicts):
        return "Shows the claim"
    if num_shown:
        return f"Shows {num_shown} of {len(verdicts)} parts of the claim"
    is_opposite = set(verdicts) == {"the opposite"}
    return "Shows the opposite" if is_opposite else "Does not show the claim"


def spread(values: Sequence[float], digits: int) -> str:
    """The mean, and the lowest and highest of several values in brackets."""
    if not values:
        return "–"
    mean, least, most = statistics.mean(values), min(values), max(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"
