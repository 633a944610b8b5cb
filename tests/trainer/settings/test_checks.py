"""The messages of checks. test_config.py tests the settings themselves."""

import pytest

from trainer.settings import checks


def test_messages_name_the_value_and_what_is_allowed():
    with pytest.raises(ValueError, match="steps") as caught:
        checks.at_least("steps", 0, 1)
    assert str(caught.value) == "steps must be 1 or more, got 0."
    with pytest.raises(ValueError, match="batch_size") as caught:
        checks.is_number_of_images("batch_size", 10**12, 1)
    assert str(caught.value) == "batch_size must be 1000000 or less, got 1000000000000."
    with pytest.raises(ValueError, match="rate") as caught:
        checks.is_finite("rate", float("inf"))
    assert str(caught.value) == "rate must be a finite number, got inf."
    with pytest.raises(ValueError, match="seed") as caught:
        checks.is_seed("seed", 2**63)
    assert str(caught.value) == "seed must be below 2^63, got 9223372036854775808."
    with pytest.raises(ValueError, match="crop") as caught:
        checks.one_of("crop", "left", ("center", "random"))
    assert str(caught.value) == "crop must be one of center, random, got 'left'."
    with pytest.raises(ValueError, match="prompt") as caught:
        checks.is_text("prompt", "\udcff")
    assert str(caught.value) == (
        "prompt is not valid Unicode: '\\udcff'. Write it in UTF-8, or rename it."
    )


def test_valid_values_pass():
    checks.at_least("steps", 1, 1)
    checks.is_seed("seed", 2**50)
    checks.one_of("crop", "center", ("center", "random"))
    checks.is_text("prompt", "사진")
    checks.require(True, "never")
