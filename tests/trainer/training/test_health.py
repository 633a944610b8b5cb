"""Runs with diverging, NaN or infinite numbers: warnings, errors, and the files that remain."""

import logging
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainer.families.sd1 import SD1
from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.settings.config import (
    DatasetConfig,
    OptimizerConfig,
    PriorConfig,
    TrainingConfig,
)
from trainer.toy import MODEL, PHOTOS
from trainer.training.health import Health

CPU = torch.device("cpu")


@pytest.fixture
def config(one_photo_config) -> TrainingConfig:
    return replace(one_photo_config, optimizer=OptimizerConfig(learning_rate=1e-5), steps=4)


def run(config: TrainingConfig, runs: Path | None = None):
    return train(config, FullFineTune(), device=CPU, runs=runs)


def warnings_of(config: TrainingConfig, losses: list[float], caplog) -> list[str]:
    caplog.clear()
    health = Health(config)
    for step in range(1, len(losses) + 1):
        health.check_losses(losses[:step])
    return caplog.messages


def noisy(count: int, level: float, seed: int) -> list[float]:
    """Losses that vary like those of single photos: by a factor of about e."""
    rng = random.Random(seed)
    return [level * rng.lognormvariate(0, 1) for _ in range(count)]


def test_noisy_losses_are_not_warned_about(config, caplog):
    assert warnings_of(config, noisy(5000, 0.1, seed=0), caplog) == []


def test_a_rising_loss_is_warned_about_each_time_it_starts_to_rise(config, caplog):
    losses = [*noisy(100, 0.05, 1), *noisy(100, 0.5, 2), *noisy(200, 0.05, 3), *noisy(50, 0.5, 4)]
    messages = warnings_of(config, losses, caplog)
    steps = [int(message.split("at step ")[1].split(",")[0]) for message in messages]
    assert len(steps) == 2
    assert 101 <= steps[0] <= 130
    assert 401 <= steps[1] <= 430


def test_the_warning_names_the_loss_before_and_after(config, caplog):
    assert warnings_of(config, [0.1] * 44 + [0.5] * 30, caplog) == [
        "The loss has risen to 0.5 at step 60, far above the 0.1 before. Training is diverging: "
        "lower optimizer.learning_rate (now 1e-05), or train fewer steps."
    ]


def test_a_run_that_diverges_at_once_is_warned_about(config, caplog):
    """The embedded model, with a learning rate a hundred times too high."""
    optimizer = OptimizerConfig(learning_rate=2e-2)
    dataset = DatasetConfig(photos=(PHOTOS,), prompt="a photo of sks cup")
    run(replace(config, base=MODEL, dataset=dataset, optimizer=optimizer, steps=30))
    (message,) = caplog.messages
    assert re.fullmatch(
        r"The loss has risen to 1\.\d+ at step 30, worse than a model that always predicts zeros\. "
        r"Training is diverging: lower optimizer\.learning_rate \(now 0\.02\), or train fewer "
        r"steps\.",
        message,
    )


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_ends_the_run_and_keeps_the_last_saved_state(
    config, tmp_path, monkeypatch, caplog, what
):
    predict, calls = SD1.predict, []

    def failing(*arguments):
        calls.append(1)
        prediction = predict(*arguments)
        if len(calls) != 4:
            return prediction
        # The square root has an infinite derivative at 0, and 0 times infinity is NaN.
        return prediction * torch.nan if what == "loss" else prediction + (prediction * 0).sqrt()

    monkeypatch.setattr(SD1, "predict", failing)
    output = replace(config.output, state_every=2)
    with pytest.raises(FloatingPointError) as caught:
        run(replace(config, output=output), tmp_path / "runs")
    assert str(caught.value) == (
        f"The {what} became nan at step 4. Lower optimizer.learning_rate (now 1e-05)."
    )
    assert caplog.messages == ["Stopped after step 3. Run the same again to resume from step 2."]
    (state,) = tmp_path.glob("runs/*/states/*.pt")
    assert state.name.startswith("step000002-")


def test_fp16_that_skips_every_step_ends_the_run(config, tmp_path, draw_photos):
    """With such a prior weight, gradients overflow fp16 at any loss scale."""
    prior = PriorConfig(
        weight=1e9, prompt="a cat", images=(draw_photos(tmp_path / "class", 1, seed=1),)
    )
    config = replace(config, precision="fp16", prior=prior, steps=100)
    with pytest.raises(FloatingPointError) as caught:
        run(config, tmp_path / "runs")
    assert str(caught.value) == (
        "In fp16 the gradients of step 1 overflowed 17 times in a row. Choose precision bf16 or "
        "fp32, or lower optimizer.learning_rate (now 1e-05)."
    )


def test_fp16_continues_once_it_has_found_a_loss_scale(config, caplog):
    caplog.set_level(logging.WARNING)
    result = run(replace(config, precision="fp16", steps=20))
    assert result.steps == 20
    assert caplog.messages == []


def test_weights_beyond_the_range_of_the_files_format_are_refused(config, tmp_path):
    output = replace(config.output, dtype="fp16")
    optimizer = OptimizerConfig(learning_rate=1e6)
    config = replace(config, output=output, optimizer=optimizer, steps=1)
    with pytest.raises(RuntimeError) as caught:
        run(config, tmp_path / "runs")
    assert str(caught.value) == (
        "After 1 steps the unet has weights that are too large for the number format of the file. "
        "Set output.dtype to fp32 and run the same again: it resumes from the last step and only "
        "writes the file."
    )
    assert list(config.output.folder.glob("*.safetensors")) == []
