"""What the terminal shows, and how Ctrl+C finishes and stops runs."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.cli import terminal
from trainer.cli.terminal import (
    TerminalObserver,
    stopping_between_steps,
    stopping_when_told,
)
from trainer.observer import StepReport
from trainer.processes import Terminated

ROOT = Path(__file__).parents[3]


def report(step: int) -> StepReport:
    return StepReport(
        step=step, total_steps=4, loss=0.25, instance_loss=0.25, prior_loss=None,
        learning_rates={"unet": 1e-6}, grad_norm=1.0, steps_per_second=2.0, seconds_left=1.5,
        peak_megabytes=512.0,
    )  # fmt: skip


def test_the_bar_shows_loss_speed_time_left_and_memory(capsys):
    with TerminalObserver() as observer:
        observer.on_step(report(4))
    shown = capsys.readouterr().err
    assert "Training 4/4" in shown
    assert "loss 0.2500, 2.00 steps/s, 2 s left, 512 MB" in shown


def test_previews_are_saved_unchanged(tmp_path):
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    TerminalObserver(tmp_path / "previews").on_preview(20, [image, 255 - image])
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == ["step000020_0.png", "step000020_1.png"]
    with Image.open(tmp_path / "previews" / names[0]) as saved:
        assert (np.asarray(saved) == image).all()


def press() -> None:
    """Send Ctrl+C, which is handled before the next line runs."""
    signal.raise_signal(signal.SIGINT)


def test_during_training_the_first_ctrl_c_finishes_and_the_second_stops(capfd):
    with stopping_between_steps(), TerminalObserver() as observer:
        observer.on_progress("Encoding photos", 3, 3)
        observer.on_start(4)
        observer.on_step(report(1))
        assert not observer.wants_to_finish()
        press()  # in the middle of step 2, which continues
        observer.on_step(report(2))
        press()
        with pytest.raises(KeyboardInterrupt):
            observer.on_step(report(3))
    shown = capfd.readouterr().err
    assert f"\n{terminal.FINISHING}\n" in shown
    assert f"\n{terminal.STOPPING_A_RUN}\n" in shown


def test_after_a_finish_request_ctrl_c_stops_again():
    with stopping_between_steps(), TerminalObserver() as observer:
        observer.on_start(4)
        press()
        observer.on_progress("Sampling", 1, 2)  # of a preview
        observer.on_step(report(1))
        assert observer.wants_to_finish()
        observer.on_progress("Sampling", 1, 2)
        press()
        with pytest.raises(KeyboardInterrupt):
            observer.on_progress("Sampling", 2, 2)


def test_after_the_last_step_there_is_nothing_to_finish():
    with stopping_between_steps(), TerminalObserver() as observer:
        observer.on_start(4)
        observer.on_step(report(4))
        assert not observer.wants_to_finish()
        press()
        with pytest.raises(KeyboardInterrupt):
            observer.on_progress("Sampling", 1, 2)


def test_the_third_ctrl_c_stops_at_once():
    with stopping_between_steps(), TerminalObserver() as observer:
        observer.on_start(4)
        press()
        press()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_outside_training_the_first_ctrl_c_stops_and_the_second_stops_at_once(capfd):
    with stopping_between_steps(), TerminalObserver() as observer:
        observer.on_progress("Encoding photos", 1, 3)
        press()
        with pytest.raises(KeyboardInterrupt):
            observer.on_progress("Encoding photos", 2, 3)
        with pytest.raises(KeyboardInterrupt):
            observer.on_start(4)
        with pytest.raises(KeyboardInterrupt):
            press()
    assert f"\n{terminal.STOPPING}\n" in capfd.readouterr().err


def test_one_stopped_run_does_not_stop_the_next():
    with stopping_between_steps():
        press()
    with stopping_between_steps(), TerminalObserver() as observer:
        observer.on_start(4)
        observer.on_step(report(1))
        assert not observer.wants_to_finish()


def test_the_run_continues_if_previews_cannot_be_saved(tmp_path, caplog):
    (tmp_path / "previews").write_text("in the way")
    TerminalObserver(tmp_path / "previews").on_preview(1, [np.zeros((8, 8, 3), np.uint8)])
    assert caplog.messages[0].startswith("Could not save the previews of this step: [")


SIGNALS = pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)


def make_steps(number: int, steps: list[int]) -> None:
    """Get a signal in the middle of the first step."""
    with stopping_between_steps(), TerminalObserver() as observer, stopping_when_told():
        observer.on_start(4)
        signal.raise_signal(number)
        steps.append(1)
        observer.on_step(report(1))
        steps.append(2)


def load(number: int, steps: list[int]) -> None:
    """Get a signal before the first step."""
    with stopping_between_steps(), stopping_when_told():
        signal.raise_signal(number)
        steps.append(1)


@SIGNALS
@pytest.mark.parametrize(("work", "made"), [(make_steps, [1]), (load, [])])
def test_one_of_several_processes_completes_its_step_and_stops(work, made, number, error):
    before, steps = signal.getsignal(number), []
    with pytest.raises(error):
        work(number, steps)
    assert steps == made
    assert signal.getsignal(number) == before
    TerminalObserver().on_progress("Encoding photos", 1, 2)  # the next work is not stopped


@pytest.mark.posix
def test_a_process_that_waits_for_another_ends_although_it_cannot_notice_its_signal():
    program = """
import ctypes
from trainer.cli import terminal
terminal.PATIENCE = 0.1
mutex, c = ctypes.create_string_buffer(64), ctypes.CDLL(None)
with terminal.stopping_when_told():
    c.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    c.pthread_mutex_lock(mutex)  # waits for ever, whatever signals come
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        try:
            assert process.wait(60) == 1
        finally:
            process.kill()  # or else a failure would not be reported before it ends
