"""Every optimizer of the menu learns, keeps the rate it is given, and starts from fp32 weights."""

import pytest
import torch
from torch import nn

from trainer.config import OptimizerConfig
from trainer.optimizers import OPTIMIZERS, build, check

RATES = {"Prodigy": 1.0}


def descend(name: str, steps: int) -> tuple[float, float]:
    """Mean squared distance to a target before and after so many steps."""
    generator = torch.Generator().manual_seed(0)
    # 8-bit states need at least 4096 weights, or bitsandbytes keeps them in 32 bit.
    weights = nn.Parameter(torch.randn(64, 128, generator=generator))
    target = torch.randn(64, 128, generator=generator)
    rate = RATES.get(name, 0.05)
    config = OptimizerConfig(name=name, learning_rate=rate, weight_decay=0.0)
    optimizer = build([{"params": [weights], "lr": rate}], config)
    losses = []
    for _ in range(steps):
        loss = (weights - target).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses[0], losses[-1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name):
    before, after = descend(name, 100)
    assert after < 0.5 * before


def test_adamw_equals_the_formula():
    weights = nn.Parameter(torch.tensor([1.0, -2.0]))
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    optimizer = build([{"params": [weights], "lr": 0.1}], config)
    weights.grad = torch.tensor([0.3, -0.7])
    optimizer.step()
    # The first step of Adam is the gradient's sign; decay shrinks by rate x decay.
    expected = [1.0 * (1 - 0.05) - 0.1, -2.0 * (1 - 0.05) + 0.1]
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)


def test_8_bit_adamw_keeps_its_states_in_8_bits():
    weights = nn.Parameter(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)))
    config = OptimizerConfig(name="AdamW8bit", learning_rate=1e-3)
    optimizer = build([{"params": [weights], "lr": 1e-3}], config)
    weights.grad = torch.ones_like(weights)
    optimizer.step()
    assert optimizer.state[weights]["state1"].dtype == torch.uint8


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_remembers_as_many_bytes_of_a_weight_as_the_table_says(name):
    weights = nn.Parameter(torch.randn(512, 512, generator=torch.Generator().manual_seed(0)))
    optimizer = build([{"params": [weights], "lr": 1e-3}], OptimizerConfig(name=name))
    for _ in range(2):
        weights.grad = torch.ones_like(weights)
        optimizer.step()
    kept = [value for value in optimizer.state[weights].values() if isinstance(value, torch.Tensor)]
    per_weight = sum(tensor.nbytes for tensor in kept) / weights.numel()
    assert per_weight == pytest.approx(OPTIMIZERS[name].bytes_per_weight, rel=0.03)


def test_refuses_an_unknown_optimizer():
    with pytest.raises(ValueError) as caught:
        check(OptimizerConfig(name="Adam"))
    assert str(caught.value) == (
        "optimizer.name must be one of AdamW, AdamW8bit, Adafactor, Prodigy, Lion, got 'Adam'."
    )


def test_names_the_package_that_is_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="^optimizer.name is AdamW8bit, which needs the") as caught:
        build([{"params": [nn.Parameter(torch.ones(1))]}], OptimizerConfig(name="AdamW8bit"))
    assert str(caught.value).endswith(
        "Install it with 'pip install bitsandbytes', or choose AdamW."
    )
