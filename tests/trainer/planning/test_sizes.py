"""Bytes by number format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.random_networks import TINY
from trainer import precision, weights
from trainer.families.shapes import NetworkShape
from trainer.optimization.optimizers import OPTIMIZERS
from trainer.optimization.weight_optimizer import WeightOptimizer
from trainer.planning import sizes
from trainer.planning.counting import StorageCounter
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
    dtypes = precision.frozen_dtypes(network, name)
    held = sum(p.numel() * dtypes[key].itemsize for key, p in network.named_parameters())
    assert sizes.frozen_bytes(CLIP, name) == pytest.approx(held, rel=0.01)


def test_gradients_have_the_format_that_the_network_computes_with():
    whole = sum(p.numel() for p in CLIP.parameters())
    assert sizes.gradient_bytes(CONFIG, CLIP) == 4 * whole
    half = sizes.gradient_bytes(CONFIG.replace({"weights": "bf16"}), CLIP)
    assert 2 * whole < half < 2.1 * whole


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("format", ["fp32", "24 bit", "bf16"])
def test_updating_a_weight_takes_what_is_said(name, format):
    if not OPTIMIZERS[name].is_per_weight:
        pytest.skip("needs all gradients at once")
    config = CONFIG.replace({"weights": format, "optimizer": {"name": name}})
    weight = nn.Parameter(torch.randn(640, 320, 3, 3))
    weights.store(weight, format)
    optimizer = WeightOptimizer(weight, {"lr": 1e-4}, config, is_exact=False)
    gradient = torch.randn_like(weight)
    optimizer.step(gradient, torch.Generator())
    rest = weights.rest_of(weight)
    existing = [weight, gradient, *([] if rest is None else [rest])]
    with StorageCounter(existing) as counter:
        optimizer.step(gradient, torch.Generator())
    held = counter.peak + gradient.nbytes
    assert sizes.update_bytes(config, weight.numel()) == pytest.approx(held, rel=0.1)
