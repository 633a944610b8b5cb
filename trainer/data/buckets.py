"""Chooses the width and height each image is trained at when images keep their shape (buckets)."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

Size = tuple[int, int]
"""Width and height, in pixels."""

MAX_RATIO = 2
"""Longer side divided by shorter side. These models were trained on squares, and beyond 2:1 they
draw the subject twice. Longer images are cropped to 2:1."""


def bucket_step(native_resolution: int) -> int:
    """Training widths and heights are multiples of this many pixels: 64, or 8 for models so small
    that multiples of 64 would leave only one shape."""
    return 64 if native_resolution >= 256 else 8


def choose_size(width: int, height: int, resolution: int, step: int) -> Size:
    """The training size whose aspect ratio is nearest to that of a `width` x `height` image.

    Both sides are multiples of `step`. Their product is at most `resolution` squared, and would
    exceed it if either side grew by one step. The longer side is at most twice the shorter one.
    `resolution` must be a multiple of `step`; a square image trains at `resolution` x `resolution`.
    """

    def distance(size: Size) -> Fraction:
        across, down = size[0] * height, size[1] * width
        return Fraction(max(across, down), min(across, down))

    # No ties: checked for every shape up to a resolution of 256 steps.
    return min(_sizes(resolution, step), key=distance)


@cache
def _sizes(resolution: int, step: int) -> tuple[Size, ...]:
    """All training sizes: those where neither side can grow by a step."""
    units = resolution // step
    area = units * units
    pairs = [(across, area // across) for across in range(1, area + 1)]
    return tuple(
        (across * step, down * step)
        for across, down in pairs
        if (across + 1) * down > area and max(across, down) <= MAX_RATIO * min(across, down)
    )
