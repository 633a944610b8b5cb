"""A run without a folder. Whole runs of this kind are tested in test_loop.py."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.observer import Observer
from trainer.runs.untracked_run import UntrackedRun


class Outputs:
    """Records what was saved."""

    def __init__(self) -> None:
        self.saved: list[bool] = []

    def save_step(self, *, is_last: bool) -> dict[str, Path]:
        self.saved.append(is_last)
        return {"checkpoint": Path("dog-step000003.safetensors")}


def stop(session: SimpleNamespace) -> list[bool]:
    outputs = Outputs()
    run = UntrackedRun(Observer())
    with pytest.raises(KeyboardInterrupt), run.stepping(session, outputs):
        raise KeyboardInterrupt
    return outputs.saved


def test_the_weights_of_the_last_step_are_saved_if_the_steps_end_early(caplog):
    assert stop(SimpleNamespace(reports=[1, 2, 3], is_whole=True)) == [True]
    assert caplog.messages == ["Saved the weights of step 3: dog-step000003.safetensors"]
    assert stop(SimpleNamespace(reports=[], is_whole=True)) == []
    assert stop(SimpleNamespace(reports=[1], is_whole=False)) == []


def test_nothing_is_saved_if_all_steps_are_made():
    outputs = Outputs()
    with UntrackedRun(Observer()).stepping(SimpleNamespace(reports=[1], is_whole=True), outputs):
        pass
    assert outputs.saved == []
