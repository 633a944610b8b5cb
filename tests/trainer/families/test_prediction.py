"""What a checkpoint predicts: the signs that programs write, and the setting that decides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer import families
from trainer.families.constants import Constants
from trainer.families.files import CheckpointFile
from trainer.families.prediction import is_v_prediction
from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.settings.config import TrainingConfig

CPU = torch.device("cpu")


@pytest.fixture
def file(tmp_path: Path):
    def write(metadata: dict[str, str], *empty: str) -> CheckpointFile:
        tensors = {"weight": torch.zeros(1), **{name: torch.zeros(0) for name in empty}}
        save_file(tensors, tmp_path / "model.safetensors", metadata=metadata)
        return CheckpointFile(tmp_path / "model.safetensors")

    return write


def refusal(source: CheckpointFile) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        is_v_prediction(source)
    return str(error.value)


@pytest.mark.parametrize("key", ["modelspec.prediction_type", "modelspec.predict_key"])
@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        *((text, False) for text in ("epsilon", "eps", "Epsilon", "EPS")),
        *(
            (text, True)
            for text in ("v", "V", "v_prediction", "v-prediction", "V Prediction", "vpred",
                         "v_pred", "velocity", "Velocity")
        ),
    ],
)  # fmt: skip
def test_every_spelling_is_understood(file, key, spelling, expected):
    assert is_v_prediction(file({key: spelling})) is expected


@pytest.mark.parametrize(
    ("metadata", "tensors", "expected"),
    [
        ({}, (), None),
        ({"modelspec.prediction_type": "", "ss_v2": "False"}, (), None),
        ({"ss_v_parameterization": "True"}, (), True),
        ({"ss_v_pred": "true"}, (), True),
        ({"ss_v_pred": "False"}, (), False),
        ({"v_pred": "1"}, (), True),
        ({}, ("v_pred",), True),
        ({"modelspec.prediction_type": "v"}, ("v_pred",), True),
    ],
)
def test_flags_of_other_programs_are_understood(file, metadata, tensors, expected):
    assert is_v_prediction(file(metadata, *tensors)) is expected


def test_a_file_that_says_both_is_refused_until_the_setting_decides(file):
    # ComfyUI's Save Checkpoint says epsilon of every Stable Diffusion 1 model.
    source = file({"modelspec.predict_key": "epsilon", "ss_v_pred": "True"}, "v_pred")
    assert refusal(source) == (
        "'model.safetensors' says both that it predicts epsilon (modelspec.predict_key) and that "
        "it predicts v (ss_v_pred, the tensor v_pred). Set prediction_type to epsilon, which "
        "almost all models predict, or to v."
    )
    assert is_v_prediction(source, "v") is True
    assert is_v_prediction(source, "epsilon") is False


def test_an_unknown_prediction_is_refused_until_the_setting_decides(file):
    source = file({"modelspec.prediction_type": "sample"})
    assert refusal(source) == (
        "The metadata of 'model.safetensors' gives 'sample' for modelspec.prediction_type, but "
        "only epsilon and v are supported. If the model predicts one of them, set prediction_type "
        "to it; otherwise choose another checkpoint."
    )
    assert is_v_prediction(source, "v") is True


@pytest.mark.parametrize("tensor", ["edm_vpred.sigma_max", "edm_mean"])
def test_a_model_of_edm_is_refused(file, tensor):
    source = file({}, tensor, "v_pred")
    assert refusal(source) == (
        f"'model.safetensors' was trained with the noise levels of EDM ({tensor}), which are not "
        "supported. Choose a checkpoint that was trained with Stable Diffusion's own."
    )
    with pytest.raises(ValueError, match="EDM"):
        is_v_prediction(source, "v")


@pytest.mark.parametrize(
    ("metadata", "tensors"),
    [({}, ("ztsnr", "v_pred")), ({"ss_zero_terminal_snr": "True", "ss_v_pred": "True"}, ())],
)
def test_zero_terminal_snr_is_read_and_the_setting_decides(file, metadata, tensors):
    source = file(metadata, *tensors)
    assert Constants.read(source).has_zero_terminal_snr
    assert Constants.read(source).is_v_prediction
    assert not Constants.read(source, "v").has_zero_terminal_snr
    assert not Constants.read(source, "epsilon").has_zero_terminal_snr
    assert not Constants.read(source, "epsilon").is_v_prediction
    plain = file({"ss_zero_terminal_snr": "False"}, "v_pred")
    assert not Constants.read(plain).has_zero_terminal_snr
    assert Constants.read(plain, "v-zsnr").has_zero_terminal_snr
    assert Constants.read(plain, "v-zsnr").is_v_prediction


@pytest.mark.parametrize(
    ("metadata", "tensors", "sign"),
    [({}, ("ztsnr",), "ztsnr"), ({"ss_zero_terminal_snr": "True"}, (), "ss_zero_terminal_snr")],
)
def test_zero_terminal_snr_without_v_is_refused_until_the_setting_decides(
    file, metadata, tensors, sign
):
    source = file(metadata, *tensors)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        Constants.read(source)
    assert str(error.value) == (
        f"'model.safetensors' says that it was trained with zero terminal SNR ({sign}), which only "
        "models that predict v can be, but not that it predicts v. Set prediction_type to v-zsnr, "
        "or to epsilon to ignore what the file says."
    )
    assert not Constants.read(source, "epsilon").has_zero_terminal_snr


@pytest.mark.parametrize("has_v", [True, False])
def test_a_trained_file_says_only_what_the_setting_said(
    one_photo_config: TrainingConfig, tiny_tensors: dict[str, Tensor], tmp_path: Path, has_v: bool
) -> None:
    """The file said both, in its metadata, the project's own key and a tensor."""
    constants = {"resolution": 16, "is_v_prediction": not has_v}
    metadata = {
        "dreambooth.constants": json.dumps(constants),
        "modelspec.predict_key": "epsilon",
        "ss_v_pred": "True",
    }
    base = tmp_path / "base.safetensors"
    save_file({**tiny_tensors, "v_pred": torch.zeros(0)}, base, metadata=metadata)
    setting = "v" if has_v else "epsilon"
    config = replace(one_photo_config, base=base, prediction_type=setting)
    result = train(config, FullFineTune(), device=CPU)
    written = CheckpointFile(result.checkpoint)
    assert written.metadata["modelspec.prediction_type"] == setting
    assert ("v_pred" in written.shapes) is has_v
    model = families.load(result.checkpoint, CPU)
    assert model.noise.is_v_prediction is has_v
