"""How far weights moved, compared with the formula."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.checkpoint import CheckpointWriter
from trainer.families.files import CheckpointFile
from trainer.runs.weight_change import WeightChange, weight_change
from trainer.settings.config import OutputConfig

NAME = "model.diffusion_model.out.2.bias"


def writer(checkpoint: Path, folder: Path) -> CheckpointWriter:
    return CheckpointWriter(CheckpointFile(checkpoint), OutputConfig(folder=folder))


def test_weight_change_equals_the_formula(tiny_checkpoint, tmp_path):
    old = load_file(tiny_checkpoint)[NAME]
    changed = old.float() + 0.25
    old, new = old.double(), changed.to(old.dtype).double()
    change = weight_change(writer(tiny_checkpoint, tmp_path), {NAME: changed})
    length = pytest.approx(((new - old).norm() / old.norm()).item())
    assert change == WeightChange(length, 1, length, pytest.approx(1))


def test_weight_change_ignores_what_the_dtype_rounds_away(tmp_path):
    base, old = tmp_path / "half.safetensors", torch.arange(1.0, 9.0)
    save_file({NAME: old.half()}, base)
    moved = [weight_change(writer(base, tmp_path), {NAME: old * (1 + x)}) for x in (1e-6, 0.25)]
    assert moved == [
        WeightChange(0, 0, pytest.approx(1e-6, rel=0.1), 0),
        WeightChange(pytest.approx(0.25), 1, pytest.approx(0.25), pytest.approx(1)),
    ]


def test_the_similarity_is_the_cosine_between_both_changes(tmp_path):
    """In fp16 the neighbours of 1 are 2^-10 and 2^-11 away."""
    base, old = tmp_path / "half.safetensors", torch.ones(4)
    save_file({NAME: old.half()}, base)
    new = old + 2**-10 * torch.tensor([1.0, 0.4, 0.4, 0.0])
    change = weight_change(writer(base, tmp_path), {NAME: new})
    assert change.similarity == pytest.approx(1 / (1 + 2 * 0.4**2) ** 0.5, abs=1e-4)
    assert change.share == 0.25
