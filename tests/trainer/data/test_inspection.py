"""Photos are looked at with their masks, and kept as they are trained."""

import numpy as np
from PIL import Image

from trainer.data.examples import find_photos
from trainer.data.images import read_with_alpha
from trainer.data.inspection import Inspection
from trainer.data.training_images import Layout
from trainer.settings.config import DatasetConfig


def save(folder, name, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 120, 3), np.uint8)
    Image.fromarray(pixels).save(folder / name)


def test_masks_and_photos_are_named_in_the_advice(tmp_path):
    save(tmp_path, "a.png", 0)
    save(tmp_path, "b.png", 1)
    mask = Image.new("L", (120, 60), 255)
    mask.paste(0, (30, 10, 90, 50))
    mask.save(tmp_path / "a-mask.png")
    dataset = DatasetConfig(photos=(tmp_path,), prompt="a", allow_upscaling=True, resolution=64)
    inspection = Inspection(dataset, Layout(64, 8, 1))
    for photo in find_photos(dataset):
        inspection.add(photo, read_with_alpha(photo.path), is_shown=photo.mask is not None)
    small, cut, inverted = inspection.advice()
    assert small.startswith("Smaller than the resolution 64 (2): a.png, b.png.")
    assert cut.startswith("The crop cuts off a part of the subject (1): a.png.")
    assert inverted.startswith("Masks that seem to be inverted (1): a-mask.png.")
    ((name, shown),) = inspection.images
    assert (name, shown.shares.shape) == ("a.png", (64, 64))
