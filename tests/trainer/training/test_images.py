"""Encoded photos and class images: warnings, and which small images are enlarged."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data.examples import find_examples, find_photos
from trainer.methods.textual_inversion import TextualInversion
from trainer.observer import Observer
from trainer.settings.config import DatasetConfig, PriorConfig, SamplingConfig, TrainingConfig
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


def test_a_class_prompt_that_is_cut_is_warned_about_once(config, tiny_model, caplog):
    """Although it is both the prompt of the class images and their caption."""
    sampling = SamplingConfig(steps=1, guidance_scale=1)
    drawn = replace(config.prior, images=(), prompt=LONG, num_images=2, sampling=sampling)
    for _ in range(2):
        tiny_model.tokenizer.reported.clear()
        caplog.clear()
        encode(replace(config, prior=drawn), tiny_model)
        cut = [message for message in caplog.messages if "longer than the text enc" in message]
        assert len(cut) == 1
    caplog.clear()
    encode(replace(config, prior=replace(drawn, prompt="dog " * 75)), tiny_model)
    assert not any("longer than the text enc" in message for message in caplog.messages)


def test_mirror_images_double_only_the_photos(config, tiny_model):
    mirrored = replace(config, dataset=replace(config.dataset, mirror=True))
    instance, prior = encode(mirrored, tiny_model)
    assert (len(instance), len(prior)) == (2, 1)


def write_captions(folder: Path, **captions: str) -> None:
    """Photos with these names, which have these captions. "" is none."""
    (photo,) = folder.iterdir()
    for name, caption in captions.items():
        (folder / f"{name}.png").write_bytes(photo.read_bytes())
        if caption:
            (folder / f"{name}.txt").write_text(caption)
    photo.unlink()


def test_the_number_of_photos_and_captions_is_logged(config, tiny_model, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_captions(tmp_path / "photos", a="a sks dog asleep", b="a sks dog", c="sks dog", d="")
    encode(config, tiny_model)
    numbers = [message for message in caplog.messages if message.startswith("Training on")]
    assert numbers == [
        "Training on 4 photos, 3 with captions of their own, and on your class images (1)."
    ]


def save_mask(folder: Path, photo: str) -> None:
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 24, 24))
    mask.save(folder / f"{photo}-masklabel.png")


def test_the_number_of_masks_is_logged(config, tiny_model, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_captions(tmp_path / "photos", a="a sks dog", b="")
    save_mask(tmp_path / "photos", "b")
    alone = replace(config, prior=PriorConfig())
    instance, _ = encode_images(find_photos(alone.dataset), alone, tiny_model, Observer())
    assert [each.weights is not None for each in instance.values()] == [False, True]
    assert "Training on 2 photos, 1 with captions of their own, 1 with masks." in caplog.messages


def test_alpha_without_transparency_is_warned_about(config, tiny_model, tmp_path, caplog):
    alone = replace(config, prior=PriorConfig(), dataset=replace(config.dataset, masks="alpha"))
    encode(alone, tiny_model)
    assert caplog.messages == [
        "dataset.masks is alpha, but no photo is transparent or has a mask file, so all of each "
        "photo is trained on its own background. Use photos with transparency, or set "
        "dataset.masks to auto."
    ]
    caplog.clear()
    image = Image.open(tmp_path / "photos" / "32.png")
    image.putalpha(128)
    image.save(tmp_path / "photos" / "32.png")
    encode(alone, tiny_model)
    assert caplog.messages == []


def test_templates_are_not_counted_as_captions_of_photos(config, tiny_model, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_captions(tmp_path / "photos", a="my <cup>", b="")
    alone = replace(config, prior=PriorConfig())
    photos = find_examples(config.dataset.photos, "a <cup>")
    method = TextualInversion(placeholder="<cup>", initializer="cup")
    encode_images(method.caption(photos, "a <cup>"), alone, tiny_model, Observer())
    assert "Training on 2 photos, 1 with captions of their own." in caplog.messages


def test_a_teachers_prompt_like_the_instance_prompt_is_warned_about(config, tiny_model, caplog):
    prior = PriorConfig(teacher_weight=1.0, prompt="a sks dog")
    encode(replace(config, prior=prior), tiny_model)
    assert caplog.messages[0] == (
        "The photos have the class prompt, 'a sks dog', so the teacher holds back what they teach. "
        "Put a rare word into dataset.prompt, such as 'a photo of sks dog', and leave it out of "
        "prior.prompt."
    )


@pytest.mark.parametrize("prompt", ["a sks dog", " A  SKS dog. "])
def test_a_class_prompt_like_the_instance_prompt_is_warned_about(
    config, tiny_model, caplog, prompt
):
    encode(replace(config, prior=replace(config.prior, prompt=prompt)), tiny_model)
    assert caplog.messages[0] == (
        "Photos and class images have the same prompt, 'a sks dog', so the class images teach the "
        "opposite of the photos. Put a rare word into dataset.prompt, such as 'a photo of sks "
        "dog', and leave it out of prior.prompt."
    )
    caplog.clear()
    dataset = replace(config.dataset, prompt="a photo of sks dog")
    prior = replace(config.prior, prompt="a photo of dog")
    encode(replace(config, dataset=dataset, prior=prior), tiny_model)
    assert not any("the same prompt" in message for message in caplog.messages)


def test_captions_decide_whether_photos_and_class_images_have_the_same_prompt(
    config, tiny_model, tmp_path, caplog
):
    same = replace(config, prior=replace(config.prior, prompt="a sks dog"))
    write_captions(tmp_path / "class", a="a brown dog")
    encode(same, tiny_model)
    assert not any("the same prompt" in message for message in caplog.messages)
    write_captions(tmp_path / "photos", a="a brown dog")
    encode(same, tiny_model)
    assert sum("the same prompt, 'a brown dog'" in message for message in caplog.messages) == 1
    caplog.clear()
    encode(replace(same, prior=replace(same.prior, weight=0)), tiny_model)
    assert not any("the same prompt" in message for message in caplog.messages)
