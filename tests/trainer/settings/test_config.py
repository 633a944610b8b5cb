"""Impossible settings are refused with the message that a user will read."""

import dataclasses
import re
from pathlib import Path

import pytest

from trainer.optimization.optimizers import OPTIMIZERS
from trainer.settings.config import (
    DatasetConfig,
    OptimizerConfig,
    TrainingConfig,
)
from trainer.settings.descriptions import descriptions

DATASET = DatasetConfig(photos=(Path("dog"),), prompt="a photo of sks dog")


def config(**changes: object) -> TrainingConfig:
    return TrainingConfig(base=Path("base.safetensors"), dataset=DATASET, **changes)


REFUSALS = [
    (
        lambda: OptimizerConfig(learning_rate=0),
        "optimizer.learning_rate must be above 0, got 0.",
    ),
    (
        lambda: OptimizerConfig(anchor=-1),
        "optimizer.anchor must be 0 or more, got -1.",
    ),
    (
        lambda: config(steps=0),
        "steps must be 1 or more, got 0.",
    ),
    (
        lambda: config(batch_size=10**12),
        "batch_size must be 1000000 or less, got 1000000000000.",
    ),
    (
        lambda: config(precision="bf17"),
        "precision must be one of fp32, fp16, bf16, got 'bf17'.",
    ),
    (
        lambda: config(ema_decay=1),
        "ema_decay must be between 0 and 1, got 1.",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSALS)
def test_refuses_impossible_settings(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().steps = 3


def test_optimizers_take_the_memory_that_their_description_says():
    text = descriptions(OptimizerConfig)["name"]
    named = re.findall(
        r"(\w[\w ]*?) (\d+)", text.partition("per trained weight:")[2].partition(".")[0]
    )
    assert {"AdamW", "AdamW8bit"} <= {name for name, _ in named}
    for name, num_bytes in named:
        assert OPTIMIZERS[name].bytes_per_weight == int(num_bytes), name
