"""Bytes by number format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.random_networks import TINY
from trainer import precision, weights
from trainer.families.shapes import NetworkShape
from trainer.planning import sizes
from trainer.settings.config import DatasetConfig, TrainingConfig

CONFIG = TrainingConfig(
    base=Path("unused"), dataset=DatasetConfig(photos=(Path("a"),), prompt="a"), precision="bf16"
)
CLIP = NetworkShape.of("text_encoder", TINY["text_encoder"])


@pytest.mark.parametrize("format", ["fp32", "24 bit", "bf16"])
@pytest.mark.parametrize("shape", [(64, 100), (8, 8), (10_000,)])
def test_a_weight_takes_the_bytes_of_its_format(format, shape):
    stored = nn.Parameter(torch.zeros(shape))
    weights.store(stored, format)
    rest = weights.rest_of(stored)
    held = stored.nbytes + (0 if rest is None else rest.nbytes)
    config = CONFIG.replace({"weights": format})
    assert sizes.weight_bytes(config, nn.Parameter(torch.zeros(shape))) == held
    offloaded = config.replace({"gradient_release": True, "offload": True})
    assert sizes.weight_bytes(offloaded, nn.Parameter(torch.zeros(shape))) == stored.nbytes
    copied = weights.copy(stored)
    rest = weights.rest_of(copied)
    held = copied.nbytes + (0 if rest is None else rest.nbytes)
    assert sizes.average_bytes(config, nn.Parameter(torch.zeros(shape))) == held


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_frozen_network_takes_the_bytes_of_the_precision(name):
    network = CLIP.build()
    precision.cast_frozen_weights(network, name)
    held = sum(p.nbytes for p in network.parameters())
    assert sizes.frozen_bytes(CLIP, name) == pytest.approx(held, rel=0.01)


def test_gradients_have_the_format_that_the_network_computes_with():
    whole = sum(p.numel() for p in CLIP.parameters())
    assert sizes.gradient_bytes(CONFIG, CLIP) == 4 * whole
    half = sizes.gradient_bytes(CONFIG.replace({"weights": "bf16"}), CLIP)
    assert 2 * whole < half < 2.1 * whole


def test_other_optimizers_update_fp32_weights_with_copies():
    found = [
        sizes.update_bytes(CONFIG.replace({"optimizer": {"name": name}}), 10)
        for name in ("AdamW", "Adafactor")
    ]
    assert found == [40, 120]
    assert sizes.update_bytes(CONFIG.replace({"weights": "24 bit"}), 10) == 160
