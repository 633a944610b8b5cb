from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.buckets import bucket_step, choose_size

sides = st.integers(1, 20000)
scales = st.sampled_from([(512, 64), (768, 64), (256, 64), (64, 8), (96, 8), (128, 64), (64, 64)])


def allowed_sizes(resolution: int, step: int) -> set[tuple[int, int]]:
    """By definition: at most 2:1, within the area, and too large if either side grew by a step."""
    area, steps = resolution * resolution, range(step, 4 * resolution + 1, step)
    return {
        (w, h)
        for w in steps
        for h in steps
        if w * h <= area < min((w + step) * h, w * (h + step)) and w <= 2 * h and h <= 2 * w
    }


@settings(deadline=None)
@given(sides, sides, scales)
def test_no_allowed_size_has_a_closer_aspect_ratio(
    width: int, height: int, scale: tuple[int, int]
) -> None:
    def distance(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1]) - math.log(width / height))

    allowed = allowed_sizes(*scale)
    chosen = choose_size(width, height, *scale)

    assert chosen in allowed
    assert distance(chosen) <= min(map(distance, allowed)) + 1e-12


@given(sides, sides, scales)
def test_swapping_width_and_height_swaps_the_size(
    width: int, height: int, scale: tuple[int, int]
) -> None:
    assert choose_size(height, width, *scale) == choose_size(width, height, *scale)[::-1]


@given(sides, scales)
def test_a_square_image_trains_at_the_resolution(side: int, scale: tuple[int, int]) -> None:
    assert choose_size(side, side, *scale) == (scale[0], scale[0])


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (4000, 3000, (576, 448)),
        (3000, 4000, (448, 576)),
        (1920, 1080, (640, 384)),
        (600, 400, (640, 384)),
        (10000, 500, (640, 384)),
        (520, 500, (512, 512)),
    ],
)
def test_usual_photos_at_512(width: int, height: int, size: tuple[int, int]) -> None:
    assert choose_size(width, height, 512, 64) == size


def test_small_models_use_small_steps() -> None:
    assert [bucket_step(side) for side in (32, 64, 128, 256, 512, 768)] == [8, 8, 8, 64, 64, 64]
