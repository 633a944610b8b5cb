"""Settings that cannot be honoured are refused, with the sentence a user will read."""

import dataclasses
from pathlib import Path

import pytest

from trainer.config import (
    DatasetConfig,
    OptimizerConfig,
    OutputConfig,
    PreviewConfig,
    PriorConfig,
    SamplingConfig,
    TrainingConfig,
)

DATASET = DatasetConfig(photos=(Path("dog"),), prompt="a photo of sks dog")


def config(**changes: object) -> TrainingConfig:
    return TrainingConfig(base=Path("base.safetensors"), dataset=DATASET, **changes)


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
        lambda: SamplingConfig(steps=1001),
        "steps must be between 1 and 1000, got 1001.",
    ),
    (
        lambda: SamplingConfig(guidance_scale=0.5),
        "guidance_scale must be 1 or more, got 0.5.",
    ),
    (
        lambda: PriorConfig(weight=-1),
        "prior.weight must be 0 or more, got -1.",
    ),
    (
        lambda: PriorConfig(weight=1),
        "prior.weight is 1 but prior.prompt is empty. Name the class, such as 'a photo of a dog', "
        "or set prior.weight to 0.",
    ),
    (
        lambda: PriorConfig(ratio=0),
        "prior.ratio must be above 0, got 0.",
    ),
    (
        lambda: OptimizerConfig(learning_rate=0),
        "optimizer.learning_rate must be above 0, got 0.",
    ),
    (
        lambda: PreviewConfig(every=0),
        "preview.every must be 1 or more, got 0.",
    ),
    (
        lambda: OutputConfig(name="a/b"),
        "output.name must be a plain file name, got 'a/b'.",
    ),
    (
        lambda: OutputConfig(keep=0),
        "output.keep must be 1 or more, got 0.",
    ),
    (
        lambda: config(steps=0),
        "steps must be 1 or more, got 0.",
    ),
    (
        lambda: config(precision="bf17"),
        "precision must be one of fp32, fp16, bf16, got 'bf17'.",
    ),
    (
        lambda: config(ema_decay=1),
        "ema_decay must lie between 0 and 1, got 1.",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSALS)
def test_refuses_what_cannot_be_honoured(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


def test_settings_do_not_change_once_made():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().steps = 3
