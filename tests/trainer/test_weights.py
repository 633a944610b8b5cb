"""Formats of trained weights, against the formats' definitions and exact arithmetic."""

import pytest
import torch
from torch import nn

from tests.trainer.fake_device import CPU, DEVICE, fake_device
from trainer import weights

FORMATS = {"24 bit": 2**-16, "bf16": 2**-8}
"""The distance between neighbouring numbers, relative to a power of 2, halved."""


def numbers(seed: int = 0) -> torch.Tensor:
    """Numbers of both signs and all sizes of a network's weights [64, 128]."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-12, 3, 128)
    return torch.randn(64, 128, generator=generator) * sizes


def stored(values: torch.Tensor, format: str) -> nn.Parameter:
    parameter = nn.Parameter(values.clone())
    weights.store(parameter, format)
    return parameter


@pytest.mark.parametrize(("format", "error"), FORMATS.items())
def test_weights_are_rounded_to_the_nearest_number(format, error):
    values = numbers()
    parameter = stored(values, format)
    assert parameter.dtype == torch.bfloat16
    assert ((weights.value(parameter) - values).abs() <= error * values.abs()).all()
    if format == "bf16":
        assert torch.equal(parameter.detach(), values.to(torch.bfloat16))


def test_what_the_network_computes_with_is_the_nearest_bf16_number():
    values = weights.value(stored(numbers(), "24 bit"))
    parameter = stored(values, "24 bit")
    distance = (parameter.float() - values).abs()
    assert (distance <= (values.to(torch.bfloat16).float() - values).abs()).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_half_precision_files_is_exact_in_24_bits(dtype):
    everything = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    finite = everything[everything.isfinite()].float()
    values = finite[: finite.numel() // 64 * 64].view(64, -1)
    assert torch.equal(weights.value(stored(values, "24 bit")), values)


def test_small_weights_stay_in_fp32():
    for shape in [(63, 65), (100_000,)]:
        values = torch.randn(shape)
        parameter = stored(values, "24 bit")
        assert parameter.dtype == torch.float32
        assert torch.equal(weights.value(parameter), values)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_too_small_for_the_format_arrives_on_average(format, sign):
    step = 2**-20
    parameter = stored(torch.full((256, 256), float(sign)), format)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        weights.write(parameter, weights.value(parameter) + sign * step, generator)
    moved = (weights.value(parameter) - sign).double().mean().item() * sign
    # Each of 65536 weights makes 100 steps; 5 standard deviations of a binomial count.
    ulp = 2**-15 if format == "24 bit" else 2**-7
    share = step / ulp
    tolerance = 5 * ulp * (100 * share * (1 - share) / 65536) ** 0.5
    assert moved == pytest.approx(100 * step, abs=tolerance)


def test_exact_values_are_written_exactly():
    values = weights.value(stored(numbers(), "24 bit"))
    parameter = stored(numbers(1), "24 bit")
    weights.write(parameter, values.clone(), torch.Generator().manual_seed(5))
    assert torch.equal(weights.value(parameter), values)


def test_the_same_generator_rounds_alike_whatever_the_memory_format():
    values = numbers().view(8, 8, 8, 16)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        parameter = stored(torch.zeros(8, 8, 8, 16).to(memory_format=memory_format), "24 bit")
        weights.write(parameter, values.clone(), torch.Generator().manual_seed(3))
        assert parameter.is_contiguous(memory_format=memory_format)
        results.append(weights.value(parameter))
    assert torch.equal(*results)


def test_infinite_and_nan_stay_not_finite():
    for bad in (float("nan"), float("inf"), float("-inf")):
        parameter = stored(torch.zeros(64, 64), "24 bit")
        weights.write(parameter, torch.full((64, 64), bad), torch.Generator())
        assert not weights.value(parameter).isfinite().any()


def test_a_view_shares_memory_and_rest():
    parameter = stored(numbers(), "24 bit")
    viewed = weights.view(parameter, (64, 128, 1, 1))
    assert torch.equal(weights.value(viewed).view(64, 128), weights.value(parameter))
    assert viewed.data_ptr() == parameter.data_ptr()


def test_swapped_weights_keep_every_bit():
    first, second = stored(numbers(), "24 bit"), stored(numbers(1), "bf16")
    average = weights.copy(second)
    before = weights.value(first), weights.value(second)
    weights.swap(second, average)
    weights.write(second, before[0].clone(), torch.Generator())
    assert torch.equal(weights.value(second), before[0])  # a copy has a rest in any case
    weights.swap(second, average)
    assert torch.equal(weights.value(second), before[1])


@pytest.mark.parametrize("rests", [None, CPU])
def test_rests_move_with_their_module_or_stay_in_main_memory(rests):
    layer = nn.Linear(128, 64)
    values = numbers()
    layer.weight.data = values.clone()
    weights.store(layer.weight, "24 bit")
    expected = weights.value(layer.weight)
    with fake_device():
        weight = layer.weight
        weights.move(layer, DEVICE, rests)
        assert layer.weight is weight
        assert (weight.device, layer.bias.device) == (DEVICE, DEVICE)
        assert weights.rest_of(weight).device == (rests or DEVICE)
        assert torch.equal(weights.value(weight).cpu(), expected)
        weights.move(layer, CPU)
        assert weights.rest_of(weight).device == CPU
    assert torch.equal(weights.value(weight), expected)
