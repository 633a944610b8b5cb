"""What full fine-tuning makes trainable, and what it refuses."""

import pytest
import torch

from trainer.methods.full import FullFineTune


def test_only_the_chosen_parts_become_trainable(tiny_model):
    trainable = FullFineTune().attach(tiny_model, 1e-5)
    assert [part.name for part in trainable.parts] == ["unet"]
    assert all(p.requires_grad for p in tiny_model.unet.parameters())
    frozen = [*tiny_model.vae.parameters(), *tiny_model.text_encoders.parameters()]
    assert not any(p.requires_grad for p in frozen)


def test_the_text_encoder_has_a_rate_of_its_own(tiny_model):
    options = FullFineTune(train_text_encoder=True, text_encoder_learning_rate=1e-6)
    trainable = options.attach(tiny_model, 1e-5)
    assert {part.name: part.learning_rate for part in trainable.parts} == {
        "unet": 1e-5, "text_encoder": 1e-6,
    }  # fmt: skip
    assert trainable.trains_text_encoder


def test_file_tensors_are_the_live_weights_under_the_files_names(tiny_model):
    trainable = FullFineTune().attach(tiny_model, 1e-5)
    name = "model.diffusion_model.out.2.bias"
    with torch.no_grad():
        tiny_model.unet.conv_out.bias.add_(1)
    old = tiny_model.source.tensor(name).float()
    torch.testing.assert_close(trainable.file_tensors()[name], old + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"text_encoder_stop_step": 5},
            "text_encoder_learning_rate and text_encoder_stop_step need train_text_encoder. "
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
def test_refuses_options_that_would_do_nothing(options, message):
    with pytest.raises(ValueError) as caught:
        FullFineTune(**options)
    assert str(caught.value) == message
