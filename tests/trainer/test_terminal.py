"""What someone at a terminal sees, and how a run is stopped from there."""

import os
import signal

import numpy as np
import pytest
from PIL import Image

from trainer.observer import StepReport
from trainer.terminal import TerminalObserver, stopping_between_steps


def report(step: int) -> StepReport:
    return StepReport(
        step=step, total_steps=4, loss=0.25, instance_loss=0.25, prior_loss=None,
        learning_rates={"unet": 1e-6}, grad_norm=1.0, steps_per_second=2.0, seconds_left=1.5,
        peak_megabytes=512.0,
    )  # fmt: skip


def test_the_bar_tells_loss_speed_time_left_and_memory(capsys):
    with TerminalObserver() as observer:
        observer.on_step(report(4))
    shown = capsys.readouterr().err
    assert "Training 4/4" in shown
    assert "loss 0.2500, 2.00 steps/s, 2 s left, 512 MB" in shown


def test_previews_are_written_as_they_are(tmp_path):
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    TerminalObserver(tmp_path / "previews").on_preview(20, [image, 255 - image])
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == ["step000020_0.png", "step000020_1.png"]
    with Image.open(tmp_path / "previews" / names[0]) as saved:
        assert (np.asarray(saved) == image).all()


def test_the_first_ctrl_c_waits_for_the_step_to_end():
    with stopping_between_steps(), TerminalObserver() as observer:
        observer.on_step(report(1))
        os.kill(os.getpid(), signal.SIGINT)  # arrives in the middle of step 2, which goes on
        with pytest.raises(KeyboardInterrupt):
            observer.on_step(report(2))


def test_the_second_ctrl_c_does_not_wait():
    with stopping_between_steps():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_one_stopped_run_does_not_stop_the_next():
    with stopping_between_steps():
        os.kill(os.getpid(), signal.SIGINT)
    with stopping_between_steps(), TerminalObserver() as observer:
        observer.on_step(report(1))
