"""Every optimizer learns, uses its learning rate, and reports the size of its state."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.optimization.optimizers import (
    OPTIMIZERS,
    build,
    check,
    check_per_weight,
    check_sharded,
    require_one_rate,
    state_bytes,
)
from trainer.settings.config import DatasetConfig, OptimizerConfig, TrainingConfig

RATES = {"Prodigy": 1.0}


def descend(name: str, steps: int) -> tuple[float, float]:
    """Return the mean squared error to a target before and after training for some steps."""
    generator = torch.Generator().manual_seed(0)
    # bitsandbytes keeps the state of parameters with fewer than 4096 weights in 32 bits.
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
    # Adam's first step has the gradient's sign; weight decay shrinks by rate x decay.
    expected = [1.0 * (1 - 0.05) - 0.1, -2.0 * (1 - 0.05) + 0.1]
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "Prodigy"])
@pytest.mark.parametrize("size", [0.01, 10.0])
def test_with_a_constant_gradient_each_weight_moves_by_the_learning_rate(name, size):
    """Regardless of how large the weights are."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.randint(0, 2, (64, 128), generator=generator) * 2.0 - 1
    weights = nn.Parameter(size * torch.randn(64, 128, generator=generator))
    config = OptimizerConfig(name=name, learning_rate=1e-3, weight_decay=0.0)
    optimizer = build([{"params": [weights], "lr": 1e-3}], config)
    for _ in range(60):
        before = weights.detach().clone()
        weights.grad = 0.3 * slope
        optimizer.step()
    torch.testing.assert_close(before - weights.detach(), 1e-3 * slope, rtol=0.05, atol=0)


def test_prodigy_equals_its_algorithm():
    """Mishchenko and Defazio (arXiv 2306.06101), with bias correction and safeguarded warm-up,
    written out in plain Python and run over a learning rate that rises and falls."""
    start, goal, decay = [1.0, -2.0, 0.5], [0.2, 0.4, 0.6], 0.1
    weights = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    config = OptimizerConfig(name="Prodigy", learning_rate=1.0, weight_decay=decay)
    optimizer = build([{"params": [weights], "lr": 1.0}], config)
    plain, mean, square, s = list(start), [0.0] * 3, [0.0] * 3, [0.0] * 3
    d = most = 1e-6
    numerator, beta3 = 0.0, 0.999**0.5
    for step in range(1, 121):
        rate = min(step / 10, 1) * (1 - step / 240)
        optimizer.param_groups[0]["lr"] = rate
        weights.grad = weights.detach() - torch.tensor(goal)
        optimizer.step()

        slope = [w - g for w, g in zip(plain, goal, strict=True)]
        d_rate = d * rate * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
        way = sum(g * (a - w) for g, a, w in zip(slope, start, plain, strict=True))
        numerator = beta3 * numerator + d / 1e-6 * d_rate * way
        mean = [0.9 * m + 0.1 * d * g for m, g in zip(mean, slope, strict=True)]
        square = [0.999 * v + 0.001 * (d * g) ** 2 for v, g in zip(square, slope, strict=True)]
        s = [beta3 * x + d / 1e-6 * d * g for x, g in zip(s, slope, strict=True)]
        found = numerator / sum(map(abs, s))
        most = max(most, found)
        scale = d * 1e-8
        d = most
        plain = [
            w * (1 - decay * d_rate) - d_rate * m / (v**0.5 + scale)
            for w, m, v in zip(plain, mean, square, strict=True)
        ]
        assert weights.tolist() == pytest.approx(plain, abs=1e-5)
    assert d > 0.1


def test_8_bit_adamw_keeps_its_states_in_8_bits():
    weights = nn.Parameter(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)))
    config = OptimizerConfig(name="AdamW8bit", learning_rate=1e-3)
    optimizer = build([{"params": [weights], "lr": 1e-3}], config)
    weights.grad = torch.ones_like(weights)
    optimizer.step()
    assert optimizer.state[weights]["state1"].dtype == torch.uint8


SHAPES = [(512, 512), (320, 640, 3, 3), (640, 320, 1, 1), (1280,), (77, 64), (8, 4)]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("is_exact", [False, True])
def test_state_bytes_equals_the_size_of_the_real_state(name, is_exact):
    """Linear layers, 3x3 and 1x1 convolutions, biases, embeddings and small weights."""
    on_matrices = OPTIMIZERS[name].on_matrices
    seen = [(shape[0], -1) if on_matrices and len(shape) > 1 else shape for shape in SHAPES]
    weights = [nn.Parameter(torch.ones(SHAPES[i]).view(shape)) for i, shape in enumerate(seen)]
    exact = weights if is_exact else []
    optimizer = build([{"params": weights, "lr": 1e-3}], OptimizerConfig(name=name), exact)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    for weight, shape in zip(weights, SHAPES, strict=True):
        # All 8-bit states share two tables of 256 levels, and the step count is one number.
        kept = sum(
            value.nbytes
            for key, value in optimizer.state[weight].items()
            if isinstance(value, torch.Tensor) and not key.startswith(("qmap", "step"))
        )
        counted = OPTIMIZERS[name].state_bytes(shape, is_exact)
        assert counted == kept == state_bytes(name, [weight], exact), shape


def test_bytes_per_weight_is_the_average_over_stable_diffusion():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            cross_attention_dim=768
        )  # 1.5's; its other options are the defaults
    weights = list(unet.parameters())
    number = sum(weight.numel() for weight in weights)
    assert number == 859_520_964
    for name, choice in OPTIMIZERS.items():
        assert round(state_bytes(name, weights) / number) == choice.bytes_per_weight, name


def run_config(name: str, **changes: object) -> TrainingConfig:
    dataset = DatasetConfig(photos=(Path("photos"),), prompt="a dog")
    optimizer = OptimizerConfig(name=name, learning_rate=2e-6)
    return TrainingConfig(base=Path("toy"), dataset=dataset, optimizer=optimizer, **changes)


def moved(name: str, groups: list[dict], weight_decay: float = 0.0) -> list[float]:
    """Return the mean absolute change of each group's parameter in one step."""
    before = [group["params"][0].detach().clone() for group in groups]
    optimizer = build(groups, OptimizerConfig(name=name, weight_decay=weight_decay))
    for group in groups:
        group["params"][0].grad = torch.ones_like(group["params"][0])
    optimizer.step()
    after = [group["params"][0].detach() for group in groups]
    return [(a - b).abs().mean().item() for a, b in zip(after, before, strict=True)]


def weight(value: float = 0.0) -> nn.Parameter:
    return nn.Parameter(torch.full((64, 128), value))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_separate_learning_rate_is_used_or_refused(name):
    groups = [{"params": [weight()], "lr": rate} for rate in (1.0, 0.1)]
    one, other = moved(name, groups)
    config = run_config(name)
    if one / other == pytest.approx(10, rel=0.01):
        require_one_rate(config, 1e-6, "text_encoder_learning_rate")
        return
    with pytest.raises(ValueError, match="text_encoder") as caught:
        require_one_rate(config, 1e-6, "text_encoder_learning_rate")
    assert str(caught.value) == (
        f"text_encoder_learning_rate is 1e-06, but optimizer.name is {name}, which trains all "
        "parts at one learning rate (optimizer.learning_rate, now 2e-06). Leave "
        "text_encoder_learning_rate out, or choose another optimizer."
    )
    require_one_rate(config, 2e-6, "text_encoder_learning_rate")
    require_one_rate(config, None, "text_encoder_learning_rate")


def test_only_prodigy_has_a_single_learning_rate():
    assert [name for name, choice in OPTIMIZERS.items() if choice.has_one_rate] == ["Prodigy"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_step_size_is_proportional_to_the_learning_rate(name):
    """Schedules and warm-up rely on this."""
    whole, tenth = (moved(name, [{"params": [weight()], "lr": rate}])[0] for rate in (1.0, 0.1))
    assert whole == pytest.approx(10 * tenth, rel=0.01)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_applies_to_the_groups_that_have_it(name):
    """It shrinks the weight by rate x decay, in addition to the gradient step."""
    rate = 1e6 if name == "Prodigy" else 1.0  # Prodigy starts at a millionth of it
    decaying, other = weight(1.0), weight(1.0)
    groups = [{"params": [decaying], "lr": rate}, {"params": [other], "lr": rate}]
    groups[1]["weight_decay"] = 0.0
    moved(name, groups, weight_decay=0.25)
    # Prodigy's bias correction multiplies the rate of the first step by sqrt(0.001) / 0.1.
    factor = 0.001**0.5 / 0.1 if name == "Prodigy" else 1.0
    pulled = (other - decaying).mean().item()
    assert pulled == pytest.approx(0.25 * factor, rel=0.01)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_channels_last_survives_and_changes_nothing(name):
    values, results = torch.randn(32, 16, 3, 3), []
    for memory_format in (torch.channels_last, torch.contiguous_format):
        weight = nn.Parameter(values.clone().to(memory_format=memory_format))
        optimizer = build([{"params": [weight], "lr": 1e-3}], OptimizerConfig(name=name))
        for seed in range(3):
            gradient = torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(seed))
            weight.grad = gradient.to(memory_format=memory_format)
            optimizer.step()
        assert weight.is_contiguous(memory_format=memory_format)
        results.append(weight.detach())
    torch.testing.assert_close(*results)


def test_8_bit_adamw_keeps_the_state_of_exact_parameters_in_32_bits():
    """Also for parameters that reuse the address of an earlier one."""
    for is_exact in (True, False, True):
        weights = nn.Parameter(torch.ones(64, 128))
        exact = [weights] if is_exact else []
        optimizer = build([{"params": [weights], "lr": 1e-3}], OptimizerConfig(name="AdamW8bit"),
                          exact)  # fmt: skip
        weights.grad = torch.ones_like(weights)
        optimizer.step()
        dtype = torch.float32 if is_exact else torch.uint8
        assert optimizer.state[weights]["state1"].dtype == dtype


def test_refuses_an_unknown_optimizer():
    with pytest.raises(ValueError) as caught:
        check(OptimizerConfig(name="Adam"))
    assert str(caught.value) == (
        "optimizer.name must be one of AdamW, AdamW8bit, Adafactor, Prodigy, Lion, "
        "Adafactor without momentum, got 'Adam'."
    )


def test_names_the_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="bitsandbytes") as caught:
        check(OptimizerConfig(name="AdamW8bit"))
    assert str(caught.value) == (
        "The optimizer AdamW8bit needs the package bitsandbytes, but it cannot be loaded (import "
        "of bitsandbytes halted; None in sys.modules). Install it with "
        f"'\"{sys.executable}\" -m pip install bitsandbytes', or choose AdamW."
    )


REFUSED = [
    (
        "Prodigy", {"gradient_release": True},
        "gradient_release is on, but optimizer.name is Prodigy, which needs the gradients of all "
        "weights at once. Choose another optimizer, or switch gradient_release off.",
    ),
    (
        "Prodigy", {"weights": "24 bit", "precision": "bf16"},
        "weights is 24 bit, but optimizer.name is Prodigy, which needs the gradients of all "
        "weights at once. Choose another optimizer, or set weights to fp32.",
    ),
    (
        "AdamW", {"gradient_release": True, "precision": "fp16"},
        "gradient_release is on, but precision is fp16, which skips steps whose gradients "
        "overflow, when weights have changed already. Set precision to bf16 or fp32, or switch "
        "gradient_release off.",
    ),
    (
        "Adafactor without momentum", {"precision": "fp16"},
        "optimizer.name is Adafactor without momentum, but precision is fp16, which skips steps "
        "whose gradients overflow, when weights have changed already. Set precision to bf16 or "
        "fp32, or choose another optimizer.",
    ),
    (
        "AdamW", {"weights": "bf16"},
        "weights is bf16, with which the model computes in bf16, but precision is fp32. Set "
        "precision to bf16, or weights to fp32.",
    ),
    (
        "AdamW", {"offload": True, "weights": "24 bit", "precision": "bf16"},
        "offload is on, which needs gradient_release. Switch gradient_release on, or offload off.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_refuses_what_a_step_per_weight_cannot_do(name, changes, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared below)
        check_per_weight(run_config(name, **changes))
    assert str(caught.value) == message


@pytest.mark.parametrize("name", [n for n, choice in OPTIMIZERS.items() if choice.is_per_weight])
def test_each_other_optimizer_updates_weights_one_by_one(name):
    changes = {"weights": "24 bit", "precision": "bf16", "gradient_release": True}
    check_per_weight(run_config(name, **changes, offload=True))


NOT_SHARDED = [
    ("AdamW", {"gradient_release": True}, "gradient_release is on", "Switch gradient_release off"),
    ("AdamW", {"weights": "bf16"}, "weights is bf16", "Set weights to fp32"),
    ("AdamW8bit", {}, "optimizer.name is AdamW8bit", "Choose AdamW or Lion"),
    ("Adafactor", {}, "optimizer.name is Adafactor", "Choose AdamW or Lion"),
    ("AdamW", {"precision": "fp16"}, "precision is fp16", "Set precision to bf16 or fp32"),
    ("AdamW", {"channels_last": True}, "channels_last is on", "Switch channels_last off"),
    ("AdamW", {"compile": True}, "compile is on", "Switch compile off"),
]


@pytest.mark.parametrize(("name", "changes", "setting", "instead"), NOT_SHARDED)
def test_refuses_what_needs_whole_weights(name, changes, setting, instead):
    config = run_config(name, **changes)
    check_sharded(config)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared below)
        check_sharded(config.replace({"sharded": True}))
    assert str(caught.value) == (
        f"sharded is on, which splits weights among processes, but {setting}, which needs whole "
        f"ones. {instead}, or sharded off."
    )


@pytest.mark.parametrize("name", ["AdamW", "Lion"])
def test_the_update_of_a_part_is_that_part_of_the_update(name):
    generator = torch.Generator().manual_seed(0)
    values, gradients = torch.randn(2, 4, 6, generator=generator)
    whole = step_once(name, values, gradients)
    parts = [step_once(name, values[rows], gradients[rows]) for rows in ([0, 1, 2], [3])]
    assert torch.equal(torch.cat(parts), whole)
    assert OPTIMIZERS[name].is_elementwise


def step_once(name, values, gradients):
    weight = nn.Parameter(values.clone())
    optimizer = build([{"params": [weight], "lr": 0.1}], OptimizerConfig(name=name))
    weight.grad = gradients.clone()
    optimizer.step()
    return weight.detach()
