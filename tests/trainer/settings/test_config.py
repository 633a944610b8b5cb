"""Settings that cannot be honoured are refused, with the sentence a user will read."""

import dataclasses
from pathlib import Path

import pytest

from trainer.settings.config import (
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
        "output.name must be a plain file name, got 'a/b': it leads out of its folder.",
    ),
    (
        lambda: OutputConfig(name="dog\n"),
        "output.name must be a plain file name, got 'dog\\n': names cannot contain \\ : * ? \" < "
        "> | or control characters, or begin or end with a space or a dot.",
    ),
    (
        lambda: OutputConfig(name="Aux"),
        "output.name must be a plain file name, got 'Aux': Windows reserves it for a device.",
    ),
    (
        lambda: OutputConfig(name="강" * 67),
        "output.name is 201 bytes long, and file names have room for 200 beside what is added to "
        "them. Choose a shorter one.",
    ),
    (
        lambda: OutputConfig(folder=Path("caf\udce9")),
        "output.folder is not valid Unicode: 'caf\\udce9'. Write it in UTF-8, or rename it.",
    ),
    (
        lambda: OutputConfig(embedding_folder=Path("caf\udce9")),
        "output.embedding_folder is not valid Unicode: 'caf\\udce9'. Write it in UTF-8, or rename "
        "it.",
    ),
    (
        lambda: PreviewConfig(prompts=("a dog", "a \udce9")),
        "preview.prompts is not valid Unicode: 'a \\udce9'. Write it in UTF-8, or rename it.",
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
