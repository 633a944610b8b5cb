"""Running averages (EMA) in a base checkpoint."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import TINY_METADATA
from trainer import families
from trainer.families.averages import leave_out_averages
from trainer.families.files import CheckpointFile
from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.runs import disk_space
from trainer.settings.config import TrainingConfig

CPU = torch.device("cpu")
UNET = "model.diffusion_model."


@pytest.fixture
def with_averages(tiny_tensors: dict[str, Tensor], tmp_path: Path) -> Path:
    """A checkpoint as the original training code writes it: names without their dots."""
    averages = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): tensor.clone()
        for key, tensor in tiny_tensors.items()
        if key.startswith(UNET)
    }
    counters = {"model_ema.decay": torch.tensor(0.5), "model_ema.num_updates": torch.tensor(9)}
    path = tmp_path / "full-ema.safetensors"
    save_file({**tiny_tensors, **averages, **counters}, path, metadata=TINY_METADATA)
    return path


def test_averages_are_left_out_of_the_result_and_the_user_is_told(
    one_photo_config: TrainingConfig,
    with_averages: Path,
    tiny_tensors: dict[str, Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = replace(one_photo_config, base=with_averages)
    result = train(config, FullFineTune(), device=CPU)
    assert CheckpointFile(result.checkpoint).shapes.keys() == tiny_tensors.keys()
    count = len([key for key in tiny_tensors if key.startswith(UNET)]) + 2
    (told,) = [r for r in caplog.records if "EMA" in r.message]
    assert told.levelno == logging.WARNING
    assert told.message.startswith(
        f"'full-ema.safetensors' also contains a running average of its weights (EMA, {count} "
        "tensors such as 'model_ema."
    )
    assert told.message.endswith(
        " GB). The weights themselves are trained; the average would be that of the untrained "
        "model, and is left out of trained checkpoints."
    )


def test_the_estimate_of_the_disk_space_leaves_them_out(
    one_photo_config: TrainingConfig, with_averages: Path, tiny_checkpoint: Path
) -> None:
    model = families.load(with_averages, CPU)
    trainable = FullFineTune().attach(model, one_photo_config, [])
    expected = tiny_checkpoint.stat().st_size
    found = disk_space.file_size(trainable, trainable.files[0])
    assert found == pytest.approx(expected, rel=1e-3)  # the header differs


@pytest.mark.parametrize(
    ("name", "is_average"),
    [
        ("model_ema.decay", True),
        ("ema.model.diffusion_model.out.2.weight", True),
        ("ema_model.out.2.weight", True),
        ("unet_ema.out.2.weight", True),
        ("first_stage_model.model_ema.decay", True),
        ("model.diffusion_model.out.2.weight", False),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", False),
        ("schema.weight", False),
    ],
)
def test_which_names_are_averages(tmp_path: Path, name: str, is_average: bool) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(2), "other": torch.zeros(3)}, path)
    source: CheckpointFile = CheckpointFile(path)
    leave_out_averages(source)
    assert source.shapes.keys() == ({"other"} if is_average else {name, "other"})
    assert len(source.notes) == is_average
