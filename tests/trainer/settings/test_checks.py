"""What is said of settings that cannot be; the settings themselves are tried in test_config.py."""

import pytest

from trainer.settings import checks


def test_says_what_came_and_what_may_come():
    with pytest.raises(ValueError, match="steps") as caught:
        checks.at_least("steps", 0, 1)
    assert str(caught.value) == "steps must be 1 or more, got 0."
    with pytest.raises(ValueError, match="crop") as caught:
        checks.one_of("crop", "left", ("center", "random"))
    assert str(caught.value) == "crop must be one of center, random, got 'left'."
    with pytest.raises(ValueError, match="prompt") as caught:
        checks.is_text("prompt", "\udcff")
    assert str(caught.value) == (
        "prompt is not valid Unicode: '\\udcff'. Write it in UTF-8, or rename it."
    )


def test_what_can_be_passes():
    checks.at_least("steps", 1, 1)
    checks.one_of("crop", "center", ("center", "random"))
    checks.is_text("prompt", "사진")
    checks.require(True, "never")
