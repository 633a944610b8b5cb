"""Which width and height each image trains at, where images keep their own shape. Integers only."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

Size = tuple[int, int]
"""Width and height, in pixels."""

MAX_RATIO = 2
"""Longer side over shorter side. Beyond 2:1 the models of these generations, which were trained on
squares, draw things twice; longer images are cropped to it."""


def bucket_step(native_resolution: int) -> int:
    """Pixels between one training width or height and the next: 64, or 8 for a model so small that
    64 would leave it a single shape."""
    return 64 if native_resolution >= 256 else 8


def choose_size(width: int, height: int, resolution: int, step: int) -> Size:
    """The training size whose shape is nearest to that of an image, by the ratio of ratios.

    Sizes are multiples of `step`, cover at most `resolution` squared, so nearly that one more step
    on either side would not fit, and are at most twice as long as wide. `resolution` must be a
    multiple of `step`; a square image then trains at `resolution` by `resolution`.
    """

    def distance(size: Size) -> Fraction:
        across, down = size[0] * height, size[1] * width
        return Fraction(max(across, down), min(across, down))

    # No shape lies equally far from two sizes: that was tried up to a resolution of 256 steps.
    return min(_sizes(resolution, step), key=distance)


@cache
def _sizes(resolution: int, step: int) -> tuple[Size, ...]:
    """All training sizes: those that cannot grow by a step on either side."""
    units = resolution // step
    area = units * units
    pairs = [(across, area // across) for across in range(1, area + 1)]
    return tuple(
        (across * step, down * step)
        for across, down in pairs
        if (across + 1) * down > area and max(across, down) <= MAX_RATIO * min(across, down)
    )
