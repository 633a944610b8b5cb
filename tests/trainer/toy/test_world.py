"""The drawn world: what its pictures and captions promise the rest of the project."""

import random
from dataclasses import replace

import numpy as np
import pytest

from trainer.families.tokenizer import ClipTokenizer
from trainer.toy import world


def scene(**changes):
    base = world.Scene(shape="ball", background="snow", body=(200, 30, 30))
    return replace(base, **changes)


def test_a_scene_always_gives_the_same_pixels():
    drawn = world.random_scene(random.Random(4))
    assert world.draw(drawn).tobytes() == world.draw(drawn).tobytes()


@pytest.mark.parametrize("shape", world.SHAPES)
@pytest.mark.parametrize("background", world.BACKGROUNDS)
def test_every_shape_shows_its_body_colour_on_every_background(shape, background):
    # Magenta is in no background, so its pixels are the object's.
    picture = world.draw(scene(shape=shape, background=background, body=(255, 0, 255)))
    assert picture.size == (world.SIZE, world.SIZE)
    red, green, blue = np.asarray(picture).astype(int).transpose(2, 0, 1)
    share = ((red > 200) & (green < 60) & (blue > 200)).mean()
    assert 0.04 < share < 0.5


def test_flipping_mirrors_the_object():
    plain = np.asarray(world.draw(scene(shape="cup", background="snow", texture=3)))
    flipped = np.asarray(world.draw(scene(shape="cup", background="snow", texture=3, flipped=True)))
    reddish = [(p[:, :, 0].astype(int) - p[:, :, 1]) > 100 for p in (plain, flipped)]
    assert (reddish[0][:, ::-1] == reddish[1]).mean() > 0.99


def test_captions_name_what_is_there_and_often_leave_it_out():
    rng = random.Random(0)
    drawn = scene(shape="cup", color="red", pattern="striped", background="beach")
    captions = [world.caption(drawn, rng) for _ in range(300)]
    assert all("cup" in caption for caption in captions)
    for words in ("red", "striped", "on the beach"):
        assert 0.5 < np.mean([words in caption for caption in captions]) < 0.9
    assert not any(word in c for c in captions for word in ("blue", "spotted", "night"))


def test_every_word_is_one_token_of_the_real_vocabulary():
    tokenizer, rng = ClipTokenizer(), random.Random(0)
    words = {
        word for _ in range(500) for word in world.caption(world.random_scene(rng), rng).split()
    }
    assert {"cup", "purple", "spotted", "beach"} <= words
    assert all(tokenizer.token_id(f"{word}</w>") is not None for word in words)


def test_no_named_look_has_the_subjects_colours_in_their_places():
    rng = random.Random(0)
    subject = world.SUBJECT
    for _ in range(2000):
        look = world.random_look(rng)
        assert look.pattern != subject.pattern
        assert np.abs(np.subtract(look.body, subject.body)).max() > 20
        assert np.abs(np.subtract(look.accent, subject.accent)).max() > 20
