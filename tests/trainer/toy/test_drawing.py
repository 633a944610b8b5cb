"""Images of the toy world show what their scenes say."""

import random
from dataclasses import replace

import numpy as np
import pytest

from trainer.toy import world
from trainer.toy.drawing import SHAPES, SIZE, draw, mask
from trainer.toy.scene import Scene


def scene(**changes):
    base = Scene(shape="ball", background="snow", body=(200, 30, 30))
    return replace(base, **changes)


def test_a_scene_always_produces_the_same_pixels():
    drawn = world.random_scene(random.Random(4))
    assert draw(drawn).tobytes() == draw(drawn).tobytes()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("background", world.BACKGROUNDS)
def test_every_shape_shows_its_body_colour_on_every_background(shape, background):
    # No background is magenta, so magenta pixels belong to the object.
    image = draw(scene(shape=shape, background=background, body=(255, 0, 255)))
    assert image.size == (SIZE, SIZE)
    red, green, blue = np.asarray(image).astype(int).transpose(2, 0, 1)
    share = ((red > 200) & (green < 60) & (blue > 200)).mean()
    assert 0.04 < share < 0.5


def test_flipping_moves_the_handle_to_the_other_side():
    handle = {"shape": "cup", "detail": (0, 255, 0), "texture": 3}
    columns = [
        np.argwhere(green_pixels(draw(scene(**handle, flipped=flipped))))[:, 1].mean()
        for flipped in (False, True)
    ]
    assert columns[0] > SIZE / 2 + 8
    assert columns[1] == pytest.approx(SIZE - 1 - columns[0], abs=1.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_is_where_changing_the_object_changes_the_image(shape):
    """Without the shadow, which is at the same place for every object."""
    posed = scene(shape=shape, background="room", scale=0.8, angle=8, shift=-6, flipped=True)
    white = np.asarray(mask(posed)) / 255
    images = [
        np.asarray(draw(replace(posed, body=color, detail=color))).astype(int)
        for color in ((250, 0, 0), (0, 0, 250))
    ]
    changed = np.abs(images[0] - images[1]).max(axis=2) > 40
    assert white[changed].min() > 0.1
    assert changed[white == 0].sum() == 0
    assert changed.sum() > 0.5 * white.sum()


def green_pixels(image):
    red, green, blue = np.asarray(image).astype(int).transpose(2, 0, 1)
    return (green > 180) & (red < 60) & (blue < 60)
