"""The values of the presets, and that each gives valid settings."""

from pathlib import Path

import pytest

from trainer.methods.full import FullFineTune
from trainer.methods.textual_inversion import TextualInversion
from trainer.settings.config import DatasetConfig, PriorConfig, TrainingConfig
from trainer.settings.presets import INVERSION_PRESETS, PRESETS


def test_presets_have_the_values_of_the_article():
    assert PRESETS["object"] == {
        "batch_size": 4, "steps": 400, "optimizer": {"learning_rate": 2e-6},
    }  # fmt: skip
    face = PRESETS["face"]
    assert (face["batch_size"], face["steps"]) == (2, 1200)
    assert face["optimizer"]["learning_rate"] == 1e-6
    assert face["prior"]["weight"] == 1
    assert face["method"]["train_text_encoder"] is True
    combined = PRESETS["textual inversion + DreamBooth"]
    assert (combined["steps"], combined["optimizer"]) == (500, {"learning_rate": 1e-6})
    inversion = INVERSION_PRESETS["textual inversion"]
    assert (inversion["steps"], inversion["optimizer"]) == (2000, {"learning_rate": 5e-4})


@pytest.mark.parametrize("presets", [PRESETS, INVERSION_PRESETS])
def test_every_preset_gives_valid_settings(presets):
    plain = TrainingConfig(
        base=Path("base"),
        dataset=DatasetConfig(photos=(Path("dog"),), prompt="a photo of sks dog"),
        prior=PriorConfig(prompt="a photo of a dog"),
    )
    for values in presets.values():
        options = dict(values)
        method = options.pop("method", {})
        assert plain.replace(options).steps == values["steps"]
        if presets is PRESETS:
            FullFineTune(**method)
        else:
            TextualInversion(placeholder="<tok>", initializer="dog", **method)
