"""What a session holds all the time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from trainer.families.shapes import SDXL
from trainer.methods.full import FullFineTune
from trainer.planning import state
from trainer.planning.job import Job
from trainer.settings.config import DatasetConfig, TrainingConfig

CONFIG = TrainingConfig(
    base=Path("unused"), dataset=DatasetConfig(photos=(Path("a"),), prompt="a"), ema=True
)
ALONE = Job(CONFIG, FullFineTune(), SDXL)
WEIGHTS = sum(p.numel() for p in SDXL.unet.parameters())


def test_adamw_holds_four_numbers_per_weight_with_a_moving_average():
    assert state.between_steps(ALONE) == {
        "weights": 4 * WEIGHTS, "optimizer state": 8 * WEIGHTS, "moving average": 4 * WEIGHTS,
        "teacher": 0,
    }  # fmt: skip
    assert state.gradient_bytes(ALONE) == 4 * WEIGHTS
    assert state.whole_in_steps(ALONE) == state.whole_in_previews(ALONE) == {}


def test_four_processes_have_a_quarter_each_of_what_is_split():
    together = replace(ALONE, num_processes=4)
    assert state.between_steps(together) == state.between_steps(ALONE)
    split = together.changed({"sharded": True})
    assert state.between_steps(split) == {
        what: size / 4 for what, size in state.between_steps(ALONE).items()
    }
    assert state.gradient_bytes(split) == WEIGHTS
    assert state.whole_in_steps(split)["whole weights"] == pytest.approx(4 * WEIGHTS / 6)
    assert state.whole_in_previews(split) == {"whole weights": 4 * WEIGHTS}
    assert state.between_steps(ALONE.changed({"sharded": True})) == state.between_steps(ALONE)


def test_a_frozen_text_encoder_that_encodes_at_each_step_is_whole():
    both = FullFineTune(train_text_encoder=True)
    text = sum(p.numel() for p in SDXL.text_encoders[0].parameters())
    split = replace(ALONE.changed({"sharded": True}), num_processes=2, method=both)
    frozen = state.weight_bytes(split, SDXL.text_encoders[1])
    expected = 4 * (WEIGHTS + text) / 2 + frozen
    assert state.between_steps(split)["weights"] == pytest.approx(expected)
