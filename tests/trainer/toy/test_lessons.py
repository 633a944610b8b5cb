"""Training data of the embedded model and its classifier."""

import random

import numpy as np
import pytest

from trainer.families.tokenizer import ClipTokenizer
from trainer.toy import world
from trainer.toy.lessons import draw_labelled_images, draw_photos, named_looks, to_pixels


def test_names_are_single_tokens_and_never_that_of_the_demo():
    looks, tokenizer = named_looks(), ClipTokenizer()
    assert len(looks) == 64
    assert "sks" not in looks
    assert all(tokenizer.token_id(f"{name}</w>") is not None for name in looks)
    assert named_looks() == looks


def test_labelled_images_show_the_subject_its_lookalikes_and_other_scenes():
    pixels, labels = draw_labelled_images(200, random.Random(0))
    assert pixels.shape == (200, 3, 64, 64)
    assert 0.15 < labels["is_subject"].float().mean() < 0.35
    cup = list(world.SHAPES).index("cup")
    assert (labels["shape"][labels["is_subject"] == 1] == cup).all()
    assert (labels["color"] == -1).any()
    assert (labels["color"] >= 0).any()


def test_pixels_reach_from_minus_one_to_one():
    images = np.array([[[[0, 255, 127]]]], dtype=np.uint8)
    assert to_pixels(images).flatten().tolist() == pytest.approx([-1, 1, -1 / 255], abs=1e-6)


def test_six_sample_photos_show_the_subject(tmp_path):
    from PIL import Image

    draw_photos(tmp_path)
    photos = sorted((tmp_path / "photos").iterdir())
    assert len(photos) == 6
    for photo in photos:
        red, green, blue = np.asarray(Image.open(photo)).astype(int).transpose(2, 0, 1)
        magenta = (red > 190) & (green < 70) & (blue > 110) & (blue < 190)
        assert 0.01 < magenta.mean() < 0.2
