"""The optimizer of a single weight, against the same optimizer applied to the weight itself."""

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainer import weights
from trainer.optimization.optimizers import OPTIMIZERS, build, state_bytes
from trainer.optimization.weight_optimizer import WeightOptimizer
from trainer.settings.config import DatasetConfig, OptimizerConfig, TrainingConfig

PER_WEIGHT = [name for name, choice in OPTIMIZERS.items() if choice.is_per_weight]
SHAPE = (32, 16, 3, 3)


def settings(name: str, *, rate: float = 1e-3, **changes: object) -> TrainingConfig:
    dataset = DatasetConfig(photos=(Path("a"),), prompt="a")
    optimizer = OptimizerConfig(name=name, learning_rate=rate)
    return TrainingConfig(base=Path("a"), dataset=dataset, optimizer=optimizer, **changes)


def gradients(steps: int, shape: Sequence[int] = SHAPE) -> list[Tensor]:
    """Noise with a constant part, as in training."""
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(*shape, generator=generator)
    return [1e-3 * (direction + torch.randn(*shape, generator=generator)) for _ in range(steps)]


def start(config: TrainingConfig, values: Tensor) -> tuple[nn.Parameter, WeightOptimizer]:
    weight = nn.Parameter(values.clone())
    weights.store(weight, config.weights)
    group = {"params": [], "lr": config.optimizer.learning_rate}
    return weight, WeightOptimizer(weight, group, config, is_exact=False)


def train(optimizer: WeightOptimizer, steps: Sequence[Tensor], first: int = 0) -> None:
    for number, gradient in enumerate(steps, start=first):
        optimizer.step(gradient.clone(), torch.Generator().manual_seed(number))


@pytest.mark.parametrize("name", PER_WEIGHT)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("offload", [True, False])
def test_an_fp32_weight_is_updated_as_by_the_optimizer_itself(name, memory_format, offload):
    config, values = settings(name, offload=offload, gradient_release=True), torch.randn(SHAPE)
    shape = (32, 144) if OPTIMIZERS[name].on_matrices else SHAPE
    plain = nn.Parameter(values.clone().view(shape))
    expected = build([{"params": [plain], "lr": 1e-3}], config.optimizer)
    weight, optimizer = start(config, values.to(memory_format=memory_format))
    for gradient in gradients(3):
        plain.grad = gradient.clone().view(shape)
        expected.step()
    train(optimizer, [g.to(memory_format=memory_format) for g in gradients(3)])
    assert torch.equal(weight.detach().contiguous(), plain.detach().view(SHAPE))
    assert weight.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("name", PER_WEIGHT)
@pytest.mark.parametrize("format", ["fp32", "24 bit", "bf16"])
def test_a_resumed_weight_is_updated_alike(name, format):
    config, values = settings(name, weights=format), torch.randn(SHAPE)
    whole, optimizer = start(config, values)
    train(optimizer, gradients(6))
    first, optimizer = start(config, values)
    train(optimizer, gradients(6)[:3])
    saved = copy.deepcopy((optimizer.state(), first.detach(), weights.rest_of(first)))
    second, optimizer = start(config, torch.zeros(SHAPE))
    optimizer.load_state(saved[0])
    weights.restore(second, *saved[1:])
    train(optimizer, gradients(6)[3:], first=3)
    assert torch.equal(weights.value(second), weights.value(whole))


@pytest.mark.parametrize("name", PER_WEIGHT)
@pytest.mark.parametrize("format", ["fp32", "24 bit", "bf16"])
@pytest.mark.parametrize("shape", [(64, 128), SHAPE, (320, 64, 1, 1)])
def test_what_is_held_between_steps_is_what_is_counted(name, format, shape):
    config = settings(name, weights=format)
    weight, optimizer = start(config, torch.randn(shape))
    train(optimizer, gradients(1, shape))
    (state,) = optimizer._optimizer.state.values()
    # bitsandbytes' tables of quantization levels, 1 KB each, are shared by all weights.
    tensors = [
        v for k, v in state.items()
        if isinstance(v, Tensor) and not k.startswith("qmap") and v.numel() > 1
    ]  # fmt: skip
    assert sum(tensor.nbytes for tensor in tensors) == state_bytes(name, [weight])
    per_weight = {"fp32": 4, "24 bit": 3, "bf16": 2}[format]
    assert weights.num_bytes(weight) == per_weight * weight.numel()
    assert optimizer._shadow.numel() == 0
    assert optimizer._shadow.grad is None


RATE, STEPS = 2e-6, 400


def survival(name: str, format: str) -> tuple[float, float]:
    """How much of the update by AdamW in fp32 another optimizer and format give: its length along
    that update, and the length of the difference, both relative to the update's."""
    generator = torch.Generator().manual_seed(0)
    values = 0.03 * torch.randn(96, 96, generator=generator)
    steps = gradients(STEPS, (96, 96))
    updates = []
    for config in (settings("AdamW", rate=RATE), settings(name, rate=RATE, weights=format)):
        weight, optimizer = start(config, values)
        before = weights.value(weight).clone()
        train(optimizer, steps)
        updates.append((weights.value(weight) - before).flatten().double())
    exact, found = updates
    share = (found @ exact / exact.square().sum()).item()
    return share, ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(
    ("name", "format", "error"),
    [
        ("AdamW8bit", "fp32", 0.2),
        ("AdamW8bit", "24 bit", 0.2),
        ("AdamW", "24 bit", 0.1),
    ],
)
def test_small_updates_survive(name, format, error):
    share, found = survival(name, format)
    assert share == pytest.approx(1, abs=0.05)
    assert found < error


def test_random_rounding_to_bf16_is_right_on_average_only():
    share, error = survival("AdamW", "bf16")
    assert share == pytest.approx(1, abs=0.1)
    assert error > 0.5


def test_rounding_to_the_nearest_bf16_would_lose_the_update():
    values = 0.03 * torch.randn(96, 96, generator=torch.Generator().manual_seed(0))
    weight = nn.Parameter(values.to(torch.bfloat16))
    optimizer = torch.optim.AdamW([weight], lr=RATE)
    before = weight.detach().clone()
    for gradient in gradients(STEPS, (96, 96)):
        weight.grad = gradient.to(torch.bfloat16)
        optimizer.step()
    assert (weight != before).float().mean() < 0.05
