"""Runs on a real disk that is too small: what they say, what they keep, and how they go on."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from trainer.loop import TrainingResult, train
from trainer.methods.full import FullFineTune
from trainer.observer import Observer, StepReport
from trainer.settings.config import (
    DatasetConfig,
    OptimizerConfig,
    OutputConfig,
    PriorConfig,
    SamplingConfig,
    TrainingConfig,
)

pytestmark = pytest.mark.posix

CPU = torch.device("cpu")
FULL = "[Errno 28] No space left on device"


@pytest.fixture
def config(tiny_checkpoint, tmp_path) -> TrainingConfig:
    """Six steps on one photo."""
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, size=(16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "photo.png")
    return TrainingConfig(
        base=tiny_checkpoint,
        dataset=DatasetConfig(photos=(tmp_path / "photos",), prompt="a dog", resolution=16),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        output=OutputConfig(folder=tmp_path / "out", name="dog"),
        steps=6,
        batch_size=1,
    )


class Acting(Observer):
    """Does something after a step, or ends the run there."""

    def __init__(self, **actions: Callable[[], object]) -> None:
        self.actions = actions
        self.steps: list[int] = []

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report.step)
        self.actions.get(f"step{report.step}", lambda: None)()


def interrupt() -> None:
    raise KeyboardInterrupt


def run(config: TrainingConfig, runs: Path, observer: Observer | None = None) -> TrainingResult:
    return train(config, FullFineTune(), device=CPU, observer=observer, runs=runs)


def same(one: TrainingResult, other: TrainingResult) -> bool:
    tensors, others = load_file(one.checkpoint), load_file(other.checkpoint)
    return all(torch.equal(tensors[name], others[name]) for name in tensors)


def fill(disk: Path, *, leaving: int) -> None:
    """Take all room on a disk but so many bytes."""
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - leaving))


def names(folder: Path) -> list[str]:
    return sorted(path.name[:10] for path in folder.rglob("*.pt"))


def test_states_pause_while_there_is_no_room_and_the_last_one_stays(
    config, small_disk, tmp_path, caplog
):
    config = replace(config, output=replace(config.output, state_every=1))
    disk = small_disk(64 << 20)
    acting = Acting(
        step2=lambda: fill(disk, leaving=1 << 20),
        step4=lambda: (disk / "filler").unlink(),
        step6=interrupt,
    )
    caplog.set_level(logging.WARNING)
    with pytest.raises(KeyboardInterrupt):
        run(config, disk, acting)
    assert acting.steps == [1, 2, 3, 4, 5, 6]
    paused = [message for message in caplog.messages if message.startswith("Could not save")]
    assert [message.split(": ")[0] for message in paused] == [
        f"Could not save the state of step {step}; that of step 1 stays" for step in (2, 3)
    ]
    assert paused[0].endswith(f"; '{next(disk.glob('*/states'))}' has 1.0 MB free")
    assert names(disk) == ["step000005", "step000006"]


def test_a_run_that_ends_while_its_disk_is_full_goes_on_from_the_state_before(
    config, small_disk, tmp_path
):
    config = replace(config, output=replace(config.output, state_every=2))
    whole = run(config, tmp_path / "whole")
    disk = small_disk(64 << 20)
    acting = Acting(step3=lambda: fill(disk, leaving=0), step5=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(config, disk, acting)
    assert names(disk) == ["step000002"]
    (disk / "filler").unlink()
    acting = Acting()
    result = run(config, disk, acting)
    assert acting.steps == [3, 4, 5, 6]
    assert same(result, whole)


def test_the_older_state_makes_room_for_the_newest(config, small_disk, caplog):
    config = replace(config, output=replace(config.output, state_every=1))
    disk, kept = small_disk(26 << 20), []  # for two states of 9.5 MB, but not three
    acting = Acting(
        step3=lambda: kept.append(names(disk)), step4=lambda: kept.append(names(disk)),
        step5=interrupt,
    )  # fmt: skip
    caplog.set_level(logging.WARNING)
    with pytest.raises(KeyboardInterrupt):
        run(config, disk, acting)
    assert kept == [["step000001", "step000002"], ["step000002", "step000003"]]
    assert names(disk) == ["step000004", "step000005"]
    assert caplog.messages == ["Stopped after step 5. Run the same again to go on from there."]


def test_losses_that_find_no_room_cost_no_step_and_come_back(config, small_disk, caplog):
    # More lines than the block of the disk holds that the file has already.
    config = replace(config, output=replace(config.output, state_every=0), steps=28)
    disk = small_disk(64 << 20)
    acting = Acting(step1=lambda: fill(disk, leaving=0), step27=lambda: (disk / "filler").unlink())
    caplog.set_level(logging.WARNING)
    result = run(config, disk, acting)
    (metrics,) = disk.glob("*/metrics.jsonl")
    (message,) = caplog.messages
    step = int(re.search(r"from step (\d+) on", message)[1])
    assert 2 < step < 27
    assert message == f"Could not write the losses from step {step} on into '{metrics}': {FULL}"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["loss"] for line in lines] == [report.loss for report in result.reports]


def test_a_run_whose_folder_is_full_at_the_end_still_has_its_result(config, small_disk, caplog):
    config = replace(config, output=replace(config.output, state_every=0))
    disk = small_disk(64 << 20)
    caplog.set_level(logging.WARNING)
    result = run(config, disk, Acting(step5=lambda: fill(disk, leaving=0)))
    assert len(load_file(result.checkpoint)) > 100
    assert caplog.messages[-1].startswith(
        f"Could not save the record that this run is finished: {FULL}: "
    )


def test_a_result_that_finds_no_room_costs_no_step_and_leaves_nothing_half_written(
    config, small_disk, tmp_path
):
    whole = run(config, tmp_path / "whole")
    disk = small_disk(64 << 20)
    config = replace(config, output=replace(config.output, folder=disk / "out"))
    with pytest.raises(OSError) as caught:
        run(config, tmp_path / "runs", Acting(step6=lambda: fill(disk, leaving=1 << 20)))
    assert str(caught.value) == (
        f"Could not write the checkpoint to '{disk / 'out'}': Error while serializing: I/O "
        "error: No space left on device (os error 28)"
    )
    assert list((disk / "out").iterdir()) == []
    (disk / "filler").unlink()
    acting = Acting()
    assert same(run(config, tmp_path / "runs", acting), whole)
    assert acting.steps == []


def test_intermediate_checkpoints_pause_while_there_is_no_room(
    config, small_disk, tmp_path, caplog
):
    disk = small_disk(64 << 20)
    config = replace(config, output=replace(config.output, folder=disk / "out", save_every=1))
    acting = Acting(
        step2=lambda: fill(disk, leaving=12 << 20), step4=lambda: (disk / "filler").unlink()
    )
    caplog.set_level(logging.WARNING)
    run(config, tmp_path / "runs", acting)
    paused = [message for message in caplog.messages if message.startswith("Could not save")]
    assert [message.split(": ")[0] for message in paused] == [
        f"Could not save the weights of step {step}" for step in (2, 3)
    ]
    assert sorted(path.name for path in (disk / "out").iterdir()) == [
        "dog-step000004.safetensors", "dog-step000005.safetensors", "dog-step000006.safetensors",
        "dog.safetensors",
    ]  # fmt: skip


def test_class_images_that_find_no_room_are_made_once_there_is_some(config, small_disk, tmp_path):
    drawing = SamplingConfig(steps=1, guidance_scale=1, batch_size=1)
    prior = PriorConfig(weight=1, prompt="a photo of a dog", num_images=6, sampling=drawing)
    config = replace(config, prior=prior)
    whole = run(config, tmp_path / "whole")
    disk = small_disk(64 << 20)
    config = replace(config, output=replace(config.output, folder=disk / "out"))

    class Filling(Observer):
        def on_progress(self, activity, done, total):
            if (activity, done) == ("Class images", 3) and not (disk / "filler").exists():
                fill(disk, leaving=0)

    with pytest.raises(OSError, match="No space left on device"):
        run(config, tmp_path / "runs", Filling())
    images = sorted(disk.rglob("*.png"))
    assert len(images) == 3
    for path in images:
        with Image.open(path) as image:
            image.load()
    (disk / "filler").unlink()
    made = [path.stat().st_mtime_ns for path in images]
    assert same(run(config, tmp_path / "runs"), whole)
    assert [path.stat().st_mtime_ns for path in images] == made
    assert len(list(disk.rglob("*.png"))) == 6


@pytest.mark.parametrize("linked", [False, True])
def test_the_output_folder_may_be_on_another_disk(config, small_disk, tmp_path, linked):
    disk = small_disk(64 << 20)
    folder = disk / "out"
    if linked:
        folder.mkdir()
        folder = tmp_path / "link"
        folder.symlink_to(disk / "out")
    config = replace(config, output=replace(config.output, folder=folder, save_every=2, keep=2))
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "runs", Acting(step3=interrupt))
    acting = Acting()
    result = run(config, tmp_path / "runs", acting)
    assert acting.steps == [4, 5, 6]
    assert result.checkpoint.parent == folder
    assert result.checkpoint.stat().st_dev != tmp_path.stat().st_dev
    assert run(config, tmp_path / "runs").reused
    assert sorted(path.name for path in folder.iterdir()) == [
        "dog-step000004.safetensors", "dog-step000006.safetensors", "dog.safetensors",
    ]  # fmt: skip
