"""Encoded photos and class images: warnings, and which small images are enlarged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data.examples import find_examples
from trainer.observer import Observer
from trainer.settings.config import DatasetConfig, PriorConfig, TrainingConfig
from trainer.training.images import encode_images

LONG = "dog " * 80


def draw(folder: Path, side: int) -> Path:
    folder.mkdir()
    pixels = np.random.default_rng(side).integers(0, 256, size=(side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{side}.png")
    return folder


@pytest.fixture
def config(tiny_checkpoint, tmp_path) -> TrainingConfig:
    return TrainingConfig(
        base=tiny_checkpoint,
        dataset=DatasetConfig(photos=(draw(tmp_path / "photos", 32),), prompt="a sks dog"),
        prior=PriorConfig(weight=1, prompt="a dog", images=(draw(tmp_path / "class", 12),)),
    )


def encode(config: TrainingConfig, model):
    photos = find_examples(config.dataset.photos, config.dataset.prompt)
    return encode_images(photos, config, model, Observer())


def test_photos_and_class_images_are_returned_separately(config, tiny_model):
    instance, prior = encode(config, tiny_model)
    assert [example.captions for example in instance] == [("a sks dog",)]
    assert [(example.captions, example.is_prior) for example in prior] == [(("a dog",), True)]
    assert encode(replace(config, prior=PriorConfig()), tiny_model)[1] == {}


def test_small_class_images_are_enlarged_and_small_photos_refused(config, tiny_model, caplog):
    """From 12 pixels to the model's 16."""
    _, prior = encode(config, tiny_model)
    assert caplog.messages == [
        "Images smaller than the training resolution 16 were enlarged, which softens them (1): "
        "12.png."
    ]
    (latents,) = prior.values()
    assert latents.mean.shape == (4, 8, 8)
    small = replace(config, dataset=replace(config.dataset, photos=config.prior.images))
    with pytest.raises(ValueError, match="^'12.png' is 12x12 pixels, smaller than the training"):
        encode(small, tiny_model)


@pytest.mark.parametrize("folder", ["photos", "class"])
def test_captions_that_are_cut_are_warned_about(config, tiny_model, tmp_path, caplog, folder):
    (image,) = (tmp_path / folder).iterdir()
    image.with_suffix(".txt").write_text(LONG)
    encode(config, tiny_model)
    cut = [message for message in caplog.messages if "longer than the text encoder" in message]
    assert len(cut) == 1
    assert cut[0].startswith(f"The caption of '{image.name}' is longer than")


def test_mirror_images_double_only_the_photos(config, tiny_model):
    mirrored = replace(config, dataset=replace(config.dataset, mirror=True))
    instance, prior = encode(mirrored, tiny_model)
    assert (len(instance), len(prior)) == (2, 1)
