"""Runs on a CUDA device that are stopped and resumed. A state is restored bit for bit. The steps
after it agree within rounding: CUDA adds up some gradients in no fixed order, so that two runs of
the same settings differ as much."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainer.observer import Observer
from trainer.optimization.optimizers import OPTIMIZERS
from trainer.settings.config import OptimizerConfig
from trainer.storage import states

pytestmark = pytest.mark.gpu


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every plain value and tensor in nested mappings and lists."""
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from leaves(item, f"{name}.{number}")
    else:
        yield name, value


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_state_is_restored_bit_for_bit(config, open_session, device, optimizer, tmp_path):
    rate = 1.0 if optimizer == "Prodigy" else 1e-3
    config = replace(
        config, optimizer=OptimizerConfig(name=optimizer, learning_rate=rate), precision="fp16",
        ema=True, steps=10,
    )  # fmt: skip
    session = open_session(config, device)
    while len(session.reports) < 3:
        session.step()
    expected = dict(leaves(copy.deepcopy(session.state())))
    states.save(tmp_path, 3, session.state())
    again = open_session(config, device)
    _, state = states.load_newest([tmp_path], up_to=10, mmap=True)
    again.load_state(state)
    found = dict(leaves(again.state()))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[name].device.type == value.device.type, name
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name
    # The loss of the next step is computed before its gradients.
    reports = [session.step(), again.step()]
    assert reports[1].loss == pytest.approx(reports[0].loss, rel=1e-5)
    assert reports[1].step == 4


class Stop(Observer):
    def on_step(self, report):
        if report.step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    config, prior, run, device, tmp_path, precision
):
    config = replace(config, prior=prior, precision=precision, steps=6, ema=True, ema_decay=0.5)
    whole = run(config, device, runs=tmp_path / "whole", train_text_encoder=True)
    with pytest.raises(KeyboardInterrupt):
        run(config, device, runs=tmp_path / "runs", observer=Stop(), train_text_encoder=True)
    parts = run(config, device, runs=tmp_path / "runs", train_text_encoder=True)
    assert [report.step for report in parts.reports] == [1, 2, 3, 4, 5, 6]
    losses = [[report.loss for report in result.reports] for result in (parts, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3 if precision == "fp32" else 1e-2)
    assert movement(parts.checkpoint, whole.checkpoint) < 0.2 * movement(
        whole.checkpoint, config.base
    )


def movement(one: Path, other: Path) -> float:
    """Return the distance between the weights of two files."""
    first, second = load_file(one), load_file(other)
    distances = [(first[n].double() - second[n].double()).square().sum() for n in first]
    return torch.stack(distances).sum().sqrt().item()
