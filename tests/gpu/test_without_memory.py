"""A CUDA device that really runs out of memory. This is the last file of the folder, so that it
cannot disturb other tests."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import Tensor

from trainer.memory import training_advice
from trainer.observer import Observer

pytestmark = pytest.mark.gpu

SIZES = (1 << 30, 1 << 26, 1 << 22, 1 << 20, 1 << 16, 1 << 9)
"""Bytes per allocation, repeated until not even the smallest one succeeds."""


class Watching(Observer):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step(self, report):
        self.steps.append(report.step)


class Filling(Watching):
    """Allocates all remaining memory after the second step."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.blocks: list[Tensor] = []

    def on_step(self, report):
        super().on_step(report)
        if report.step == 2:
            for size in SIZES:
                with suppress(torch.cuda.OutOfMemoryError):
                    while True:
                        self.blocks.append(
                            torch.empty(size, dtype=torch.uint8, device=self._device)
                        )


def test_a_run_out_of_memory_says_what_helps_and_resumes_later(config, run, device, tmp_path):
    whole = run(config, device)
    filling, later = Filling(device), Watching()
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
        run(config, device, runs=tmp_path / "runs", observer=filling)
    advice = training_advice(config, trains_text_encoder=False, resolution=32)
    assert str(caught.value) == f"Out of memory at step 3. {advice}"
    assert filling.steps == [1, 2]
    filling.blocks.clear()
    result = run(config, device, runs=tmp_path / "runs", observer=later)
    assert later.steps == [3, 4]
    losses = [[report.loss for report in each.reports] for each in (result, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
