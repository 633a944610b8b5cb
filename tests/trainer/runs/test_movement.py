"""Whether what was trained reaches the file, and that no training is lost if it does not."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import TINY_METADATA
from trainer.families.files import CheckpointFile
from trainer.loop import TrainingResult, train
from trainer.methods.full import FullFineTune
from trainer.observer import Observer, StepReport
from trainer.settings.config import OptimizerConfig, PreviewConfig, SamplingConfig, TrainingConfig

CPU = torch.device("cpu")
UNET = "model.diffusion_model."


class Steps(Observer):
    """Counts the steps that are made."""

    def __init__(self) -> None:
        self.made = 0

    def on_step(self, report: StepReport) -> None:
        self.made += 1


@pytest.fixture
def observer() -> Steps:
    return Steps()


@pytest.fixture
def base_in(tiny_tensors: dict[str, Tensor], tmp_path: Path):
    """Writes the tiny checkpoint in a number format, and returns its path."""

    def write(dtype: torch.dtype) -> Path:
        path = tmp_path / "base.safetensors"
        tensors = {key: tensor.to(dtype) for key, tensor in tiny_tensors.items()}
        save_file(tensors, path, metadata=TINY_METADATA)
        return path

    return write


def run(config: TrainingConfig, observer: Observer | None = None) -> TrainingResult:
    runs = config.output.folder / "runs"
    return train(config, FullFineTune(), device=CPU, observer=observer, runs=runs)


def with_rate(config: TrainingConfig, rate: float) -> TrainingConfig:
    return replace(config, optimizer=OptimizerConfig(learning_rate=rate, weight_decay=0))


def refusal(config: TrainingConfig, observer: Observer) -> str:
    with pytest.raises(RuntimeError) as caught:
        run(config, observer)
    assert list(config.output.folder.glob("*.safetensors")) == []
    return str(caught.value)


@pytest.mark.parametrize("lr_schedule", ["constant", "cosine"])
def test_changes_that_the_file_rounds_away_cost_no_training(
    one_photo_config: TrainingConfig, base_in, observer: Steps, lr_schedule: str
) -> None:
    """The advice of the message works: the file is written without another step."""
    config = replace(one_photo_config, base=base_in(torch.bfloat16), steps=2)
    config = with_rate(config, 1e-12)
    optimizer = replace(config.optimizer, lr_schedule=lr_schedule)
    preview = PreviewConfig(prompts=("a dog",), sampling=SamplingConfig(steps=1))
    config = replace(config, optimizer=optimizer, preview=preview)
    assert refusal(config, observer) == (
        "After 2 steps no weight of the unet differs from the base model's in the file, because "
        "its number format is too coarse for changes so small. Set output.dtype to fp32 and run "
        "the same again: it resumes from the last step and only writes the file. Or raise the "
        "learning rate (now 1e-12) and train again."
    )
    assert observer.made == 2
    result = run(replace(config, output=replace(config.output, dtype="fp32")), observer)
    assert observer.made == 2
    assert len(result.reports) == 2
    assert len(result.previews) == 1
    weights = CheckpointFile(result.checkpoint).dtypes
    assert {dtype for key, dtype in weights.items() if key.startswith(UNET)} == {torch.float32}
    assert result.moved["unet"][0] > 0


def test_weights_beyond_the_range_of_the_file_cost_no_training(
    one_photo_config: TrainingConfig, observer: Steps
) -> None:
    config = with_rate(one_photo_config, 1e6)
    output = replace(config.output, dtype="fp16")
    assert "are too large for the number format" in refusal(
        replace(config, output=output), observer
    )
    result = run(replace(config, output=replace(output, dtype="fp32")), observer)
    assert (observer.made, result.steps) == (1, 1)


def test_a_part_whose_weights_stay_equal_is_an_error(
    one_photo_config: TrainingConfig, observer: Steps
) -> None:
    assert refusal(with_rate(one_photo_config, 1e-30), observer) == (
        "After 1 steps no weight of the unet differs from the base model's, although it was "
        "trained. Raise its learning rate (now 1e-30)."
    )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_an_fp8_model_is_written_in_fp16_and_the_user_is_told_first(
    one_photo_config: TrainingConfig,
    base_in,
    dtype: torch.dtype,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = with_rate(replace(one_photo_config, base=base_in(dtype)), 1e-3)
    result = run(config)
    name = str(dtype).removeprefix("torch.")
    told = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert told[0] == (
        f"The base model stores the weights to train as {name}, which is too coarse for the "
        "changes of training. They will be written as float16, so the file will be larger than "
        "the base model's."
    )
    dtypes = CheckpointFile(result.checkpoint).dtypes
    assert {found for key, found in dtypes.items() if key.startswith(UNET)} == {torch.float16}
    assert {found for key, found in dtypes.items() if not key.startswith(UNET)} == {dtype}
    caplog.clear()
    run(replace(config, output=replace(config.output, dtype="fp32")))
    assert not [r for r in caplog.records if "too coarse" in r.message]


def test_changes_that_reach_the_file_only_roughly_are_a_warning(
    one_photo_config: TrainingConfig, base_in, caplog: pytest.LogCaptureFixture
) -> None:
    config = with_rate(replace(one_photo_config, base=base_in(torch.bfloat16)), 1e-5)
    run(config)
    (told,) = [r.message for r in caplog.records if "roughly" in r.message]
    assert told.startswith("The file holds the changes of the unet only roughly (cosine 0.")
    assert told.endswith(
        "), because its number format is too coarse for changes so small. Train again with a "
        "higher learning rate (now 1e-05), or with output.dtype fp32."
    )
    caplog.clear()
    run(replace(config, output=replace(config.output, dtype="fp32")))
    assert not [r for r in caplog.records if "roughly" in r.message]
