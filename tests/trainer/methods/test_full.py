"""What full fine-tuning makes trainable, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainer.data.examples import Example
from trainer.families.embedding import Embedding
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.methods.textual_inversion import TextualInversion
from trainer.settings.config import DatasetConfig, OptimizerConfig, TrainingConfig


@pytest.fixture
def config(tiny_checkpoint, tmp_path):
    return TrainingConfig(
        base=tiny_checkpoint,
        dataset=DatasetConfig(photos=(tmp_path,), prompt="a photo of sks dog"),
        optimizer=OptimizerConfig(learning_rate=1e-5),
    )


def test_only_the_chosen_parts_become_trainable(tiny_model, config):
    trainable = FullFineTune().attach(tiny_model, config, [])
    assert [part.name for part in trainable.parts] == ["unet"]
    assert all(p.requires_grad for p in tiny_model.unet.parameters())
    frozen = [*tiny_model.vae.parameters(), *tiny_model.text_encoders.parameters()]
    assert not any(p.requires_grad for p in frozen)


def test_the_text_encoder_has_its_own_learning_rate(tiny_model, config):
    options = FullFineTune(train_text_encoder=True, text_encoder_learning_rate=1e-6)
    trainable = options.attach(tiny_model, config, [])
    assert {part.name: part.learning_rate for part in trainable.parts} == {
        "unet": 1e-5, "text_encoder": 1e-6,
    }  # fmt: skip
    assert trainable.trains_text_encoder


def test_either_or_both_text_encoders_of_xl_are_trained(xl_model, config):
    rates = {"text_encoder_2_learning_rate": 3e-6, "text_encoder_2_stop_step": 7}
    second = FullFineTune(train_text_encoder_2=True, **rates).attach(xl_model, config, [])
    assert [(p.name, p.learning_rate, p.stop_step) for p in second.parts] == [
        ("unet", 1e-5, None), ("text_encoder_2", 3e-6, 7),
    ]  # fmt: skip
    assert second.trains_text_encoder
    first, last = xl_model.text_encoders
    assert all(p.requires_grad for p in last.parameters())
    assert not any(p.requires_grad for p in first.parameters())
    both = FullFineTune(train_text_encoder=True, train_text_encoder_2=True, **rates)
    assert both.trained_parts == {"unet", "text_encoder", "text_encoder_2"}
    assert [part.name for part in both.attach(xl_model, config, []).parts] == [
        "unet", "text_encoder", "text_encoder_2",
    ]  # fmt: skip


def test_a_second_text_encoder_is_refused_where_there_is_none(tiny_model, config):
    with pytest.raises(ValueError) as caught:
        FullFineTune(train_text_encoder_2=True).attach(tiny_model, config, [])
    assert str(caught.value) == (
        "train_text_encoder_2 is on, but Stable Diffusion 1 has only one text encoder. Switch it "
        "off, and train_text_encoder on."
    )


def test_file_tensors_are_the_current_weights_by_their_names_in_the_file(tiny_model, config):
    trainable = FullFineTune().attach(tiny_model, config, [])
    name = "model.diffusion_model.out.2.bias"
    with torch.no_grad():
        tiny_model.unet.conv_out.bias.add_(1)
    old = tiny_model.source.tensor(name).float()
    (file,) = trainable.files
    torch.testing.assert_close(trainable.file_tensors(file)[name], old + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"text_encoder_stop_step": 5},
            "text_encoder_learning_rate and text_encoder_stop_step need train_text_encoder. "
            "Switch it on, or leave them out.",
        ),
        (
            {"train_text_encoder": True, "text_encoder_2_learning_rate": 1e-6},
            "text_encoder_2_learning_rate and text_encoder_2_stop_step need train_text_encoder_2. "
            "Switch it on, or leave them out.",
        ),
        (
            {"train_text_encoder": True, "text_encoder_learning_rate": 0.0},
            "text_encoder_learning_rate must be above 0, got 0.0.",
        ),
        (
            {"train_text_encoder": True, "text_encoder_stop_step": 0},
            "text_encoder_stop_step must be 1 or more, got 0.",
        ),
    ],
)
def test_refuses_options_without_effect(options, message):
    with pytest.raises(ValueError) as caught:
        FullFineTune(**options)
    assert str(caught.value) == message


def test_refuses_to_train_a_missing_embedding(config):
    with pytest.raises(ValueError) as caught:
        FullFineTune(train_embedding=True).check(config)
    assert str(caught.value) == (
        "train_embedding is on, but the run has no embedding. Set embedding to the file of a "
        "textual inversion, or switch train_embedding off."
    )


def test_refuses_to_freeze_the_model_in_8_bits(config):
    with pytest.raises(ValueError) as caught:
        FullFineTune().check(config.replace({"frozen_weights": "8 bit"}))
    assert str(caught.value) == (
        "frozen_weights is 8 bit, but the model itself is trained. Set frozen_weights to "
        "precision, or train a LoRA."
    )


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        (FullFineTune(train_embedding=True), "an embedding"),
        (LoRA(), "a LoRA"),
        (TextualInversion(placeholder="<dog>", initializer="dog"), "an embedding"),
    ],
)
def test_weights_are_split_only_if_the_model_itself_is_trained(config, method, trained):
    config = config.replace({"sharded": True, "embedding": Path("dog.safetensors")})
    FullFineTune().check(config)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared below)
        method.check(config)
    assert str(caught.value) == (
        "sharded is on, which splits the model's trained weights among processes, but "
        f"{trained} is trained. Switch sharded off."
    )


def test_refuses_settings_that_the_optimizer_would_ignore(config):
    config = replace(config, optimizer=OptimizerConfig(name="Prodigy", learning_rate=1))
    options = {"train_text_encoder": True}
    FullFineTune(**options).check(config)
    with pytest.raises(ValueError, match="^text_encoder_learning_rate is 0.5, but "):
        FullFineTune(**options, text_encoder_learning_rate=0.5).check(config)


def test_refuses_an_embedding_that_no_caption_uses(tiny_model, config):
    tiny_model.add_embedding(Embedding("<tok>", {"clip_l": torch.ones(1, 24)}))
    photos = [Example(Path("a.png"), ("a photo of sks dog",))]
    with pytest.raises(ValueError) as caught:
        FullFineTune().attach(tiny_model, config, photos)
    assert str(caught.value) == (
        "The embedding's placeholder '<tok>' appears in no caption, so the embedding would have no "
        "effect. Add it to dataset.prompt, for example 'a photo of <tok>' (now 'a photo of sks "
        "dog')."
    )
