"""Settings as plain values."""

from pathlib import Path

from trainer.settings.config import DatasetConfig, OutputConfig, TrainingConfig
from trainer.settings.values import as_json, flatten


def test_settings_become_json_with_the_names_of_paths():
    config = TrainingConfig(
        base=Path("models/base.safetensors"),
        dataset=DatasetConfig(photos=(Path("me/dog"), Path("me/cat")), prompt="a photo of sks dog"),
        output=OutputConfig(folder=Path("me/out")),
        steps=7,
    )
    found = as_json(config)
    assert (found["base"], found["steps"], found["embedding"]) == ("base.safetensors", 7, None)
    assert found["dataset"]["photos"] == ["dog", "cat"]
    assert found["output"]["folder"] == "out"


def test_nested_settings_get_dotted_names():
    settings = {"steps": 3, "output": {"name": "dog", "more": {"a": []}}}
    assert list(flatten(settings)) == [("steps", 3), ("output.name", "dog"), ("output.more.a", [])]
    assert [name for name, _ in flatten(settings, "method.")] == [
        "method.steps", "method.output.name", "method.output.more.a",
    ]  # fmt: skip
