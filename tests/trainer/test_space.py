"""What a run will write, against what it does write; and what is said where that does not fit."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.config import DatasetConfig, OptimizerConfig, OutputConfig, TrainingConfig
from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.observer import Observer
from trainer.space import amount, file_size, state_bytes_per_weight

CPU = torch.device("cpu")


@pytest.fixture
def config(tiny_checkpoint, tmp_path) -> TrainingConfig:
    """Three steps on one photo."""
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, size=(16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "photo.png")
    return TrainingConfig(
        base=tiny_checkpoint,
        dataset=DatasetConfig(photos=(tmp_path / "photos",), prompt="a dog", resolution=16),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        output=OutputConfig(folder=tmp_path / "out", name="dog"),
        steps=3,
        batch_size=1,
    )


def run(config: TrainingConfig, runs: Path | None = None, observer: Observer | None = None):
    return train(config, FullFineTune(), device=CPU, runs=runs, observer=observer)


@pytest.fixture
def session_of(monkeypatch):
    """The session of a whole run, as its check of the disk gets it."""

    def make(config, runs=None):
        seen = []
        monkeypatch.setattr("trainer.space.check", lambda session, _, **__: seen.append(session))
        result = run(config, runs)
        return seen[0], result

    return make


@pytest.mark.parametrize("dtype", ["as input", "fp16"])
def test_a_checkpoint_is_as_large_as_estimated(config, session_of, dtype):
    session, result = session_of(replace(config, output=replace(config.output, dtype=dtype)))
    (file,) = session.trainable.files
    real = result.checkpoint.stat().st_size
    # The metadata of a run is longer than the base model's.
    assert 0 <= real - file_size(session, file) < 10_000
    assert (real < config.base.stat().st_size) == (dtype == "fp16")


@pytest.mark.parametrize(("optimizer", "ema"), [("AdamW", False), ("AdamW", True), ("Lion", False)])
def test_a_state_is_as_large_as_estimated(config, session_of, tmp_path, optimizer, ema):
    optimizer = OptimizerConfig(name=optimizer, learning_rate=1e-3)
    output = replace(config.output, keep_state=True)
    config = replace(config, optimizer=optimizer, ema=ema, output=output)
    session, _ = session_of(config, tmp_path / "runs")
    (state,) = tmp_path.glob("runs/*/states/*.pt")
    num_weights = sum(parameter.numel() for parameter in session.parameters)
    estimate = state_bytes_per_weight(session) * num_weights
    assert state.stat().st_size == pytest.approx(estimate, rel=0.05)


def test_a_result_without_room_is_refused_before_the_first_step(config, small_disk):
    disk = small_disk(1 << 20)
    began = []

    class Watching(Observer):
        def on_start(self, total_steps):
            began.append(total_steps)

    with pytest.raises(OSError) as caught:
        run(
            replace(config, output=replace(config.output, folder=disk / "out")), observer=Watching()
        )
    size = amount(config.base.stat().st_size)
    assert str(caught.value) == (
        f"The run will write 1 checkpoint of {size} into '{disk / 'out'}', where 1.0 MB are free. "
        "Free some, choose another folder, or set output.dtype to fp16."
    )
    assert began == []
    assert list((disk / "out").iterdir()) == []


def test_states_and_intermediate_checkpoints_without_room_are_told_of(
    config, small_disk, tmp_path, caplog
):
    size = config.base.stat().st_size
    disk = small_disk(2 * size)
    output = replace(config.output, folder=disk / "out", save_every=1, state_every=1, keep=2)
    caplog.set_level(logging.WARNING)
    run(replace(config, output=output), disk / "runs")
    said = re.fullmatch(
        r"The run will want (\S+ MB) on the disk of '(.*)', where (\S+ MB) are free: 1 checkpoint "
        r"of (\S+ MB), 2 intermediate checkpoints of (\S+ MB), 2 states of (\S+ MB)\. What does "
        r"not fit is left out until there is room, and a run that is ended early then goes on from "
        r"further back\. Free some, or lower output\.keep\.",
        caplog.messages[0],
    )
    assert said[2] == str(disk / "out")
    assert said[4] == said[5] == amount(size)
    for message, what, of in [
        (caplog.messages[1], "a checkpoint", "the weights of step 1"),
        (caplog.messages[2], "a state", "the state of step 1"),
    ]:
        assert re.fullmatch(
            rf"Could not keep {of}: {what} needs \S+ MB, and the run's result still "
            rf"{amount(size)}; '.*' has \S+ MB free",
            message,
        )
    assert (disk / "out" / "dog.safetensors").exists()
    megabytes = [float(said[n].removesuffix(" MB")) for n in (1, 4, 6)]
    assert megabytes[0] == pytest.approx(3 * megabytes[1] + 2 * megabytes[2], rel=0.01)


def test_amounts():
    assert (amount(23_247_646), amount(10_318_000_000)) == ("23.2 MB", "10.3 GB")
