"""Impossible settings of the photos are refused with the message that a user will read."""

from pathlib import Path

import pytest

from trainer.settings.dataset import DatasetConfig

REFUSALS = [
    (
        lambda: DatasetConfig(photos=(), prompt="a"),
        "dataset.photos is empty. Name a folder of photos.",
    ),
    (
        lambda: DatasetConfig(photos=(Path("a"),), prompt=" "),
        "dataset.prompt is empty. Describe the photos, such as 'a photo of sks dog'.",
    ),
    (
        lambda: DatasetConfig(photos=(Path("a"),), prompt="a", resolution=500),
        "dataset.resolution must be a multiple of 8, got 500.",
    ),
    (
        lambda: DatasetConfig(photos=(Path("a"),), prompt="a", crop="left"),
        "dataset.crop must be one of center, random, got 'left'.",
    ),
    (
        lambda: DatasetConfig(photos=(Path("a"),), prompt="a", masks="on"),
        "dataset.masks must be one of auto, alpha, off, got 'on'.",
    ),
    (
        lambda: DatasetConfig(photos=(Path("a"),), prompt="a", unmasked_weight=1.5),
        "dataset.unmasked_weight must be between 0 and 1, got 1.5.",
    ),
    (
        lambda: DatasetConfig(photos=(Path("a"),), prompt="a", random_backgrounds=-1),
        "dataset.random_backgrounds must be 0 or more, got -1.",
    ),
    (
        lambda: DatasetConfig(photos=(Path("a"),), prompt="a", random_backgrounds=10**12),
        "dataset.random_backgrounds must be 1000000 or less, got 1000000000000.",
    ),
    (
        lambda: DatasetConfig(photos=(Path("a"),), prompt="a", masks="off", random_backgrounds=8),
        "dataset.random_backgrounds is 8, but dataset.masks is off. Set it to auto or alpha, or "
        "use no random backgrounds.",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSALS)
def test_refuses_impossible_settings(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message
