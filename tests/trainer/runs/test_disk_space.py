"""Estimated disk space against what a run really writes, and messages if that does not fit."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.observer import Observer
from trainer.optimization.optimizers import OPTIMIZERS
from trainer.runs.disk_space import file_size, format_bytes, state_size
from trainer.settings.config import (
    OptimizerConfig,
    PriorConfig,
    SamplingConfig,
    TrainingConfig,
)

CPU = torch.device("cpu")


@pytest.fixture
def config(one_photo_config) -> TrainingConfig:
    return replace(one_photo_config, steps=3)


def run(
    config: TrainingConfig,
    runs: Path | None = None,
    observer: Observer | None = None,
    **options: object,
):
    return train(config, FullFineTune(**options), device=CPU, runs=runs, observer=observer)


@pytest.fixture
def measured(monkeypatch):
    """Makes a run. Returns its result, and the model and trainable that the disk check received."""

    def make(config, runs=None, **options):
        seen = []
        monkeypatch.setattr(
            "trainer.runs.disk_space.check", lambda config, *parts, **_: seen.append(parts)
        )
        result = run(config, runs, **options)
        return result, *seen[0]

    return make


@pytest.mark.parametrize("dtype", ["as input", "fp16"])
def test_a_checkpoint_is_as_large_as_estimated(config, measured, dtype):
    config = replace(config, output=replace(config.output, dtype=dtype))
    result, model, trainable = measured(config)
    (file,) = trainable.files
    real = result.checkpoint.stat().st_size
    # A run adds metadata to that of the base model.
    assert 0 <= real - file_size(trainable, file) < 10_000
    assert (real < config.base.stat().st_size) == (dtype == "fp16")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("ema", "train_text_encoder"), [(False, False), (True, True)])
def test_a_state_is_as_large_as_estimated(
    config, measured, tmp_path, optimizer, ema, train_text_encoder
):
    optimizer = OptimizerConfig(name=optimizer, learning_rate=1e-3)
    output = replace(config.output, keep_state=True)
    config = replace(config, optimizer=optimizer, ema=ema, output=output)
    _, model, trainable = measured(config, tmp_path / "runs", train_text_encoder=train_text_encoder)
    (state,) = tmp_path.glob("runs/*/states/*.pt")
    estimate = state_size(config, model, trainable)
    # Besides the numbers, the file stores a name and an offset for each of 300 tensors.
    assert estimate < state.stat().st_size < 1.03 * estimate + 1_000_000


@pytest.mark.posix
def test_a_result_that_does_not_fit_is_refused_before_the_first_step(config, small_disk):
    disk = small_disk(1 << 20)
    started = []

    class Watching(Observer):
        def on_start(self, total_steps):
            started.append(total_steps)

    with pytest.raises(OSError) as caught:
        run(
            replace(config, output=replace(config.output, folder=disk / "out")), observer=Watching()
        )
    size = format_bytes(config.base.stat().st_size)
    assert str(caught.value) == (
        f"The run will write 1 checkpoint of {size} to '{disk / 'out'}', but only 1.0 MB are free "
        "there. Free some space, choose another folder, or set output.dtype to fp16."
    )
    assert started == []
    assert list((disk / "out").iterdir()) == []


@pytest.mark.posix
def test_the_disk_is_checked_before_class_images_are_generated(config, small_disk):
    drawing = SamplingConfig(steps=1, guidance_scale=1)
    prior = PriorConfig(weight=1, prompt="a dog", num_images=2, sampling=drawing)
    activities = []

    class Watching(Observer):
        def on_progress(self, activity, done, total):
            activities.append(activity)

    output = replace(config.output, folder=small_disk(1 << 20) / "out")
    with pytest.raises(OSError, match="^The run will write 1 checkpoint of "):
        run(replace(config, prior=prior, output=output), observer=Watching())
    assert activities == []


def test_steps_before_the_state_need_no_space(config, tmp_path, caplog):
    """A run stopped one step before its end needs space for one more intermediate checkpoint."""

    class Stopping(Observer):
        def on_step(self, report):
            if report.step == 2:
                raise KeyboardInterrupt

    seen = []
    output = replace(config.output, save_every=1, state_every=1)
    config = replace(config, output=output)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "runs", Stopping())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.runs.disk_space._require_room", lambda needs: seen.extend(needs))
        run(config, tmp_path / "runs")
    assert {need.what: need.num for need in seen} == {
        "checkpoint": 1, "intermediate checkpoints": 1, "states": 0,
    }  # fmt: skip


@pytest.mark.posix
def test_states_and_intermediate_checkpoints_that_do_not_fit_are_reported(
    config, small_disk, tmp_path, caplog
):
    size = config.base.stat().st_size
    disk = small_disk(2 * size)
    output = replace(config.output, folder=disk / "out", save_every=1, state_every=1, keep=2)
    caplog.set_level(logging.WARNING)
    run(replace(config, output=output), disk / "runs")
    said = re.fullmatch(
        r"The run needs (\S+ MB) on the disk of '(.*)', but only (\S+ MB) are free: 1 checkpoint "
        r"of (\S+ MB), 2 intermediate checkpoints of (\S+ MB), 2 states of (\S+ MB)\. Files that "
        r"do not fit are skipped until there is space, so a run that is stopped may resume from an "
        r"earlier step\. Free some space, or lower output\.keep\.",
        caplog.messages[0],
    )
    assert said[2] == str(disk / "out")
    assert said[4] == said[5] == format_bytes(size)
    for message, what, of in [
        (caplog.messages[1], "a checkpoint", "the weights of step 1"),
        (caplog.messages[2], "a state", "the state of step 1"),
    ]:
        assert re.fullmatch(
            rf"Could not save {of}: {what} needs \S+ MB, and the run's result another "
            rf"{format_bytes(size)}, but '.*' has only \S+ MB free",
            message,
        )
    assert (disk / "out" / "dog.safetensors").exists()
    megabytes = [float(said[n].removesuffix(" MB")) for n in (1, 4, 6)]
    assert megabytes[0] == pytest.approx(3 * megabytes[1] + 2 * megabytes[2], rel=0.01)


def test_numbers_of_bytes_are_formatted_for_people():
    assert (format_bytes(23_247_646), format_bytes(10_318_000_000)) == ("23.2 MB", "10.3 GB")
