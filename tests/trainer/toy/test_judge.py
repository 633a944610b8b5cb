"""The classifier on drawings that it was not trained on."""

import random
from dataclasses import replace

import numpy as np
import torch

from trainer.toy import world
from trainer.toy.drawing import draw
from trainer.toy.judge import Judge

CPU = torch.device("cpu")


def images_of(scenes):
    return [np.asarray(draw(scene)) for scene in scenes]


def test_recognises_what_drawings_show():
    rng = random.Random(20_000)
    scenes = [world.random_scene(rng) for _ in range(200)]
    verdicts = Judge().verdicts(images_of(scenes))
    for trait, share in (("shape", 0.95), ("background", 0.95), ("color", 0.85)):
        right = [
            getattr(s, trait) == getattr(v, trait) for s, v in zip(scenes, verdicts, strict=True)
        ]
        assert np.mean(right) >= share, trait


def test_distinguishes_the_subject_from_other_cups():
    rng, judge = random.Random(20_001), Judge()
    subject = images_of([world.subject_scene(rng) for _ in range(100)])
    cups = images_of([world.pose(world.random_look(rng), rng, shape="cup") for _ in range(100)])
    assert judge.subject_score(subject) >= 0.95
    assert judge.subject_score(cups) <= 0.03
    assert judge.prior_score(cups) >= 0.93
    assert judge.prior_score(subject) <= 0.05


def test_a_cup_with_one_wrong_trait_is_not_the_subject():
    rng, judge, subject = random.Random(20_002), Judge(), world.SUBJECT
    wrong = {
        "body": replace(subject, body=(200, 40, 40)),
        "pattern": replace(subject, pattern="plain"),
        "accent": replace(subject, accent=(60, 160, 40)),
    }
    for trait, look in wrong.items():
        scenes = [world.pose(look, rng, shape="cup") for _ in range(50)]
        assert judge.subject_score(images_of(scenes)) <= 0.15, trait
