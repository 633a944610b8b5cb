"""Options of text encoders, which FullFineTune and LoRA share. What they make trainable is tested
with each method."""

import pytest

from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.methods.text_encoders import TEXT_ENCODERS
from trainer.settings.descriptions import descriptions


@pytest.mark.parametrize("method", [FullFineTune, LoRA])
def test_the_trained_parts_are_named(method):
    assert method().trained_text_encoders == []
    both = method(train_text_encoder=True, train_text_encoder_2=True)
    assert tuple(both.trained_text_encoders) == TEXT_ENCODERS
    options = method(
        train_text_encoder_2=True, text_encoder_2_learning_rate=3e-6, text_encoder_2_stop_step=7
    )
    assert options.settings_of("text_encoder_2") == (True, 3e-6, 7)
    assert options.settings_of("text_encoder") == (False, None, None)


@pytest.mark.parametrize("method", [FullFineTune, LoRA])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"text_encoder_learning_rate": 1e-6},
            "text_encoder_learning_rate and text_encoder_stop_step need train_text_encoder. Switch "
            "it on, or leave them out.",
        ),
        (
            {"train_text_encoder_2": True, "text_encoder_2_stop_step": 0},
            "text_encoder_2_stop_step must be 1 or more, got 0.",
        ),
        (
            {"train_text_encoder": True, "text_encoder_learning_rate": 0.0},
            "text_encoder_learning_rate must be above 0, got 0.0.",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(method, options, message):
    with pytest.raises(ValueError) as caught:
        method(**options)
    assert str(caught.value) == message


def test_each_method_describes_what_training_text_encoders_costs_it():
    full, lora = descriptions(FullFineTune), descriptions(LoRA)
    assert "sixth more memory" in full["train_text_encoder"]
    assert lora["train_text_encoder"].startswith("Train a LoRA of the text encoder")
    shared = "text_encoder_stop_step"
    assert full[shared] == lora[shared] != ""
