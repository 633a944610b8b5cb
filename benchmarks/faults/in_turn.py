"""Orders of trials of which any number of the first ones is an even sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def spread(items: Sequence[T]) -> Iterator[T]:
    """The first, the last, the middle one, those between them, and so on."""
    last, step, seen = len(items) - 1, len(items), set[int]()
    while len(seen) < len(items):
        for number in (last, *range(0, len(items), step)) if seen else (0,):
            if number not in seen:
                seen.add(number)
                yield items[number]
        step = max(1, (step + 1) // 2 if len(seen) > 1 else step)


def in_turn(groups: Sequence[Iterable[T]]) -> Iterator[T]:
    """The first of each group, then the second of each, and so on, until all are at their end. An
    iterator that is named twice has two turns."""
    left = [iter(group) for group in groups]
    while left:
        for group in list(left):
            try:
                yield next(group)
            except StopIteration:
                left = [other for other in left if other is not group]
