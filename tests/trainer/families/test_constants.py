from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer.families.constants import Constants, without_prediction
from trainer.families.files import CheckpointFile


def with_metadata(folder: Path, **metadata: str) -> CheckpointFile:
    path = folder / "model.safetensors"
    keys = {"constants": "dreambooth.constants", "prediction": "modelspec.prediction_type"}
    named = {keys[name]: value for name, value in metadata.items()}
    save_file({"a": torch.zeros(1)}, path, metadata=named)
    return CheckpointFile(path)


def test_without_metadata_the_constants_are_stable_diffusion_1s(tmp_path: Path) -> None:
    constants = Constants.read(with_metadata(tmp_path))
    # The published v1-inference.yaml.
    assert constants == Constants(
        unet_heads=8,
        unet_norm_groups=32,
        vae_norm_groups=32,
        text_heads=12,
        latent_scale=0.18215,
        beta_start=0.00085,
        beta_end=0.0120,
        is_v_prediction=False,
        resolution=512,
    )


def test_the_files_metadata_overrides_the_constants(tmp_path: Path) -> None:
    text = '{"vae_norm_groups": 8, "latent_scale": 1, "is_v_prediction": true}'
    constants = Constants.read(with_metadata(tmp_path, constants=text))
    assert constants == Constants(vae_norm_groups=8, latent_scale=1, is_v_prediction=True)


@pytest.mark.parametrize(("prediction", "expected"), [("v", True), ("epsilon", False)])
def test_modelspecs_prediction_type_is_read(
    tmp_path: Path, prediction: str, expected: bool
) -> None:
    constants = Constants.read(with_metadata(tmp_path, prediction=prediction))
    assert constants.is_v_prediction is expected


def test_the_projects_key_overrides_modelspecs(tmp_path: Path) -> None:
    own = '{"is_v_prediction": false}'
    source = with_metadata(tmp_path, prediction="v", constants=own)
    assert Constants.read(source).is_v_prediction is False


NAMES = (
    "unet_heads, unet_norm_groups, vae_norm_groups, text_heads, text_norm, latent_scale, "
    "beta_start, beta_end, is_v_prediction, has_zero_terminal_snr, resolution"
)


@pytest.mark.parametrize(
    ("text", "given", "allowed"),
    [
        ("{", "'{' for dreambooth.constants", "a JSON object"),
        ("[1]", "'[1]' for dreambooth.constants", "a JSON object"),
        ("[" * 99_999, f"'{'[' * 99_999}' for dreambooth.constants", "a JSON object"),
        ('{"heads": 8}', "'heads' for dreambooth.constants", f"one of {NAMES}"),
        *(
            (f'{{"{name}": {value}}}', f"'{value}' for {name} in dreambooth.constants", allowed)
            for name, value, allowed in [
                ("unet_heads", '"8"', "a whole number above 0, up to 1000000"),
                ("unet_heads", "8.0", "a whole number above 0, up to 1000000"),
                ("unet_heads", "true", "a whole number above 0, up to 1000000"),
                ("resolution", "1000001", "a whole number above 0, up to 1000000"),
                ("latent_scale", "Infinity", "a number above 0, up to 1000000"),
                ("latent_scale", "NaN", "a number above 0, up to 1000000"),
                ("resolution", "0", "a whole number above 0, up to 1000000"),
                ("beta_end", "-1", "a number above 0, up to 1000000"),
                ("beta_end", "null", "a number above 0, up to 1000000"),
                ("is_v_prediction", "1", "true or false"),
            ]
        ),
    ],
)
def test_wrong_constants_are_refused(tmp_path: Path, text: str, given: str, allowed: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        Constants.read(with_metadata(tmp_path, constants=text))
    assert str(error.value) == (
        f"The metadata of 'model.safetensors' gives {given}, which must be {allowed}. "
        "Correct the metadata, or choose another checkpoint."
    )


def test_the_setting_overrides_all_that_the_file_says(tmp_path: Path) -> None:
    source = with_metadata(tmp_path, prediction="v", constants='{"is_v_prediction": true}')
    assert Constants.read(source, "epsilon").is_v_prediction is False
    assert Constants.read(with_metadata(tmp_path), "v").is_v_prediction is True


def test_the_prediction_is_removed_from_metadata_and_nothing_else_is(tmp_path: Path) -> None:
    constants = '{"resolution": 16, "is_v_prediction": true}'
    metadata = {"modelspec.predict_key": "v", "ss_v_pred": "True", "modelspec.title": "a"}
    assert without_prediction({**metadata, "dreambooth.constants": constants}) == {
        "modelspec.title": "a",
        "dreambooth.constants": '{"resolution": 16}',
    }
    assert without_prediction({"dreambooth.constants": '{"resolution":16}'}) == {
        "dreambooth.constants": '{"resolution":16}'
    }
