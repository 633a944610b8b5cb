"""Runs on a real disk that is full: their messages, the files that stay, and how they resume."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from trainer.loop import TrainingResult, train
from trainer.methods.full import FullFineTune
from trainer.observer import Observer, StepReport
from trainer.settings.config import (
    PriorConfig,
    SamplingConfig,
    TrainingConfig,
)

pytestmark = pytest.mark.posix

CPU = torch.device("cpu")
FULL = "[Errno 28] No space left on device"


@pytest.fixture
def config(one_photo_config) -> TrainingConfig:
    return replace(one_photo_config, steps=6)


class Actions(Observer):
    """Calls the action of a step, such as `step3`, after that step. Records all steps."""

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


def equal_weights(one: TrainingResult, other: TrainingResult) -> bool:
    tensors, others = load_file(one.checkpoint), load_file(other.checkpoint)
    return all(torch.equal(tensors[name], others[name]) for name in tensors)


def fill(disk: Path, *, leaving: int) -> None:
    """Fill a disk until only `leaving` bytes are free."""
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - leaving))


def state_names(folder: Path) -> list[str]:
    return sorted(path.name[:10] for path in folder.rglob("*.pt"))


def test_no_state_is_saved_while_the_disk_is_full_and_the_last_one_stays(
    config, small_disk, tmp_path, caplog
):
    config = replace(config, output=replace(config.output, state_every=1))
    disk = small_disk(64 << 20)
    actions = Actions(
        step2=lambda: fill(disk, leaving=1 << 20),
        step4=lambda: (disk / "filler").unlink(),
        step6=interrupt,
    )
    caplog.set_level(logging.WARNING)
    with pytest.raises(KeyboardInterrupt):
        run(config, disk, actions)
    assert actions.steps == [1, 2, 3, 4, 5, 6]
    paused = [message for message in caplog.messages if message.startswith("Could not save")]
    assert [message.split(": ")[0] for message in paused] == [
        f"Could not save the state of step {step}; the state of step 1 is kept" for step in (2, 3)
    ]
    assert paused[0].endswith(f", but '{next(disk.glob('*/states'))}' has only 1.0 MB free")
    assert state_names(disk) == ["step000005", "step000006"]


def test_a_run_stopped_while_the_disk_is_full_resumes_from_the_last_state(
    config, small_disk, tmp_path
):
    config = replace(config, output=replace(config.output, state_every=2))
    whole = run(config, tmp_path / "whole")
    disk = small_disk(64 << 20)
    actions = Actions(step3=lambda: fill(disk, leaving=0), step5=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(config, disk, actions)
    assert state_names(disk) == ["step000002"]
    (disk / "filler").unlink()
    actions = Actions()
    result = run(config, disk, actions)
    assert actions.steps == [3, 4, 5, 6]
    assert equal_weights(result, whole)


def test_the_oldest_state_is_deleted_to_make_room_for_the_newest(config, small_disk, caplog):
    config = replace(config, output=replace(config.output, state_every=1))
    disk, kept = small_disk(26 << 20), []  # for two states of 9.5 MB, but not three
    actions = Actions(
        step3=lambda: kept.append(state_names(disk)), step4=lambda: kept.append(state_names(disk)),
        step5=interrupt,
    )  # fmt: skip
    caplog.set_level(logging.WARNING)
    with pytest.raises(KeyboardInterrupt):
        run(config, disk, actions)
    assert kept == [["step000001", "step000002"], ["step000002", "step000003"]]
    assert state_names(disk) == ["step000004", "step000005"]
    assert caplog.messages == ["Stopped after step 5. Run the same again to resume from there."]


def test_losses_that_could_not_be_written_are_written_once_there_is_room(
    config, small_disk, caplog
):
    # Enough steps for metrics.jsonl to outgrow the disk block that it already has.
    config = replace(config, output=replace(config.output, state_every=0), steps=28)
    disk = small_disk(64 << 20)
    actions = Actions(
        step1=lambda: fill(disk, leaving=0), step27=lambda: (disk / "filler").unlink()
    )
    caplog.set_level(logging.WARNING)
    result = run(config, disk, actions)
    (metrics,) = disk.glob("*/metrics.jsonl")
    (message,) = caplog.messages
    step = int(re.search(r"from step (\d+) on", message)[1])
    assert 2 < step < 27
    assert message == f"Could not write the losses to '{metrics}' from step {step} on: {FULL}"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["loss"] for line in lines] == [report.loss for report in result.reports]


def test_a_run_whose_folder_is_full_at_the_end_still_returns_its_result(config, small_disk, caplog):
    config = replace(config, output=replace(config.output, state_every=0))
    disk = small_disk(64 << 20)
    caplog.set_level(logging.WARNING)
    result = run(config, disk, Actions(step5=lambda: fill(disk, leaving=0)))
    assert len(load_file(result.checkpoint)) > 100
    assert caplog.messages[-1].startswith(
        f"Could not save the record that this run is finished: {FULL}: "
    )


def test_a_checkpoint_that_does_not_fit_leaves_no_partial_file_and_is_written_by_the_next_run(
    config, small_disk, tmp_path
):
    whole = run(config, tmp_path / "whole")
    disk = small_disk(64 << 20)
    config = replace(config, output=replace(config.output, folder=disk / "out"))
    with pytest.raises(OSError) as caught:
        run(config, tmp_path / "runs", Actions(step6=lambda: fill(disk, leaving=1 << 20)))
    assert str(caught.value) == (f"{FULL}: '{disk / 'out' / 'dog.safetensors'}'")
    assert list((disk / "out").iterdir()) == []
    (disk / "filler").unlink()
    actions = Actions()
    assert equal_weights(run(config, tmp_path / "runs", actions), whole)
    assert actions.steps == []


def test_no_intermediate_checkpoint_is_saved_while_the_disk_is_full(
    config, small_disk, tmp_path, caplog
):
    disk = small_disk(64 << 20)
    config = replace(config, output=replace(config.output, folder=disk / "out", save_every=1))
    actions = Actions(
        step2=lambda: fill(disk, leaving=12 << 20), step4=lambda: (disk / "filler").unlink()
    )
    caplog.set_level(logging.WARNING)
    run(config, tmp_path / "runs", actions)
    paused = [message for message in caplog.messages if message.startswith("Could not save")]
    assert [message.split(": ")[0] for message in paused] == [
        f"Could not save the weights of step {step}" for step in (2, 3)
    ]
    assert sorted(path.name for path in (disk / "out").iterdir()) == [
        "dog-step000004.safetensors", "dog-step000005.safetensors", "dog-step000006.safetensors",
        "dog.safetensors",
    ]  # fmt: skip


def test_class_images_that_did_not_fit_are_drawn_by_the_next_run(config, small_disk, tmp_path):
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
    assert equal_weights(run(config, tmp_path / "runs"), whole)
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
        run(config, tmp_path / "runs", Actions(step3=interrupt))
    actions = Actions()
    result = run(config, tmp_path / "runs", actions)
    assert actions.steps == [4, 5, 6]
    assert result.checkpoint.parent == folder
    assert result.checkpoint.stat().st_dev != tmp_path.stat().st_dev
    assert run(config, tmp_path / "runs").reused
    assert sorted(path.name for path in folder.iterdir()) == [
        "dog-step000004.safetensors", "dog-step000006.safetensors", "dog.safetensors",
    ]  # fmt: skip
