"""Impossible settings are refused with the message that a user will read."""

import dataclasses
import re
from pathlib import Path

import pytest

from trainer.optimization.optimizers import OPTIMIZERS
from trainer.settings.config import (
    DatasetConfig,
    OptimizerConfig,
    OutputConfig,
    TrainingConfig,
)
from trainer.settings.descriptions import descriptions

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
        lambda: OptimizerConfig(learning_rate=0),
        "optimizer.learning_rate must be above 0, got 0.",
    ),
    (
        lambda: OutputConfig(name="a/../b"),
        "output.name must be a plain file name, got 'a/../b': it leads out of its folder.",
    ),
    (
        lambda: OutputConfig(name="dogs/"),
        "output.name must be a plain file name, got 'dogs/': it has nothing before or after a "
        "slash.",
    ),
    (
        lambda: OutputConfig(name="dogs/nul/b"),
        "output.name must be a plain file name, got 'dogs/nul/b': Windows reserves it for a "
        "device.",
    ),
    (
        lambda: OutputConfig(name="a%date: %"),
        "output.name must be a plain file name, got 'a ': names cannot contain \\ : * ? \" < > | "
        "or control characters, or begin or end with a space or a dot.",
    ),
    (
        lambda: OutputConfig(name=".safetensors"),
        "output.name must be a plain file name, got '': it leads out of its folder.",
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
        "output.name is 201 bytes long, but endings are added to it, so at most 200 are possible. "
        "Choose a shorter name.",
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
    named = re.findall(r"(\w+) (\d+)", text.partition("per trained weight:")[2].partition(".")[0])
    assert {"AdamW", "AdamW8bit"} <= {name for name, _ in named}
    for name, num_bytes in named:
        assert OPTIMIZERS[name].bytes_per_weight == int(num_bytes), name


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt", ".pt", ".bin", ".SafeTensors.CKPT"])
def test_the_ending_of_a_file_is_left_out_of_its_name(ending):
    assert OutputConfig(name="dogs/my-dog v1.5" + ending).name == "dogs/my-dog v1.5"


def test_subfolders_in_a_name_move_to_the_folder():
    output = OutputConfig(folder=Path("out"), name="dogs/2024/my-dog", keep=7).in_subfolder()
    assert (output.folder, output.name, output.keep) == (Path("out/dogs/2024"), "my-dog", 7)
    assert output.in_subfolder() == output
