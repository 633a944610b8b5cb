"""Scenes and captions of the toy world."""

import random
from dataclasses import replace

import numpy as np

from trainer.families.tokenizer import ClipTokenizer
from trainer.toy import world
from trainer.toy.scene import Scene


def scene(**changes):
    base = Scene(shape="ball", background="snow", body=(200, 30, 30))
    return replace(base, **changes)


def test_captions_name_only_what_the_scene_shows_and_often_leave_it_out():
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
