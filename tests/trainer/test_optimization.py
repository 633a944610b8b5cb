"""What the optimizer of a real run gets at each step: the scheduled learning rates, and clipped
gradients."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from trainer.loop import TrainingResult, train
from trainer.methods.full import FullFineTune
from trainer.settings.config import OptimizerConfig, TrainingConfig

CPU = torch.device("cpu")
WARM_UP, AFTERWARDS, RESTARTS = 2, 10, 2
SHAPES: dict[str, Callable[[int], float]] = {
    "constant": lambda n: 1,
    "linear": lambda n: 1 - n / AFTERWARDS,
    "cosine": lambda n: (1 + math.cos(math.pi * n / AFTERWARDS)) / 2,
    "cosine with restarts": lambda n: (1 + math.cos(math.pi * (n % 5) / 5)) / 2,
}
"""Learning-rate multiplier at step n after the warm-up, by schedule."""


@pytest.fixture
def config(one_photo_config) -> TrainingConfig:
    return replace(one_photo_config, steps=3)


class RecordedSteps(list[tuple[list[float], Tensor]]):
    """For each step, the learning rate of each group, and all gradients as one vector."""

    @property
    def rates(self) -> list[list[float]]:
        return [rates for rates, _ in self]

    @property
    def gradients(self) -> list[Tensor]:
        return [gradients for _, gradients in self]


@pytest.fixture
def recorded() -> Iterator[RecordedSteps]:
    steps = RecordedSteps()

    def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
        groups = optimizer.param_groups
        gradients = [weights.grad for group in groups for weights in group["params"]]
        row = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
        steps.append(([group["lr"] for group in groups], row.clone()))

    hook = register_optimizer_step_pre_hook(record)
    yield steps
    hook.remove()


def run(config: TrainingConfig, **options: object) -> TrainingResult:
    return train(config, FullFineTune(**options), device=CPU)


@pytest.mark.parametrize("name", SHAPES)
def test_learning_rates_follow_the_schedule_after_warm_up(config, recorded, name):
    optimizer = OptimizerConfig(
        learning_rate=1e-3, lr_schedule=name, warmup_steps=WARM_UP, num_restarts=RESTARTS
    )
    config = replace(config, optimizer=optimizer, steps=WARM_UP + AFTERWARDS)
    result = run(config, train_text_encoder=True, text_encoder_learning_rate=2e-4)
    curve = [1 / 3, 2 / 3, *map(SHAPES[name], range(AFTERWARDS))]
    expected = {"unet": [1e-3 * y for y in curve], "text_encoder": [2e-4 * y for y in curve]}
    reported = [report.learning_rates for report in result.reports]
    for number, part in enumerate(expected):
        assert [rates[part] for rates in reported] == pytest.approx(expected[part])
        assert [rates[number] for rates in recorded.rates] == pytest.approx(expected[part])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_clipped_to_the_limit(config, recorded, precision):
    def gradients(limit: float, precision: str = precision) -> tuple[list[Tensor], list[float]]:
        recorded.clear()
        optimizer = OptimizerConfig(learning_rate=1e-4, max_grad_norm=limit)
        changed = replace(config, gradient_accumulation=2, optimizer=optimizer)
        result = run(replace(changed, precision=precision))
        return recorded.gradients, [report.grad_norm for report in result.reports]

    (first, *others), norms = gradients(0)
    assert [float(row.norm()) for row in (first, *others)] == pytest.approx(norms, rel=1e-4)
    if precision != "fp32":
        # The loss is scaled, but the gradients must be unscaled by now.
        assert norms[0] == pytest.approx(gradients(0, "fp32")[1][0], rel=0.2)
    limit = 0.1 * min(norms)
    (cut, *later), reported = gradients(limit)
    torch.testing.assert_close(cut, first * limit / first.norm(), rtol=1e-3, atol=1e-7)
    assert [float(row.norm()) for row in (cut, *later)] == pytest.approx([limit] * 3, rel=1e-3)
    assert reported[0] == norms[0]
    assert torch.equal(gradients(10 * max(norms))[0][0], first)
