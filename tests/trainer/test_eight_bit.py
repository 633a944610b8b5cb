"""Layers with weights in 8 bits: how well they are rounded, and that they compute with the rounded
weights in both directions and keep no other copy of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer import eight_bit
from trainer.methods.adapters import Adapter, attach
from trainer.planning.counting import COPIES, StorageCounter

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYERS = [
    lambda: nn.Linear(24, 40),
    lambda: nn.Linear(24, 40, bias=False),
    lambda: nn.Conv2d(6, 10, 3, padding=1),
    lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1, dilation=2),
    lambda: nn.Conv2d(6, 10, 2, groups=2, bias=False),
]
INPUTS = {nn.Linear: (2, 5, 24), nn.Conv2d: (2, 6, 9, 8)}


def pair(build, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """A layer that holds its weight in 8 bits, and a plain one with the same values."""
    torch.manual_seed(0)
    held = build().requires_grad_(False)
    eight_bit.hold(held, held.weight.detach().clone(), dtype)
    plain = build().requires_grad_(False)
    plain.weight.copy_(eight_bit.values(held))
    if plain.bias is not None:
        plain.bias.copy_(held.bias)
        held.bias.data = held.bias.data.to(dtype)
    return held, plain.to(dtype)


def results(layer: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The output and the gradient of the input."""
    shape = next(shape for kind, shape in INPUTS.items() if isinstance(layer, kind))
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    inputs.requires_grad_(True)
    output = layer(inputs)
    (gradient,) = torch.autograd.grad(output.square().sum(), inputs)
    return output, gradient


@pytest.mark.parametrize("build", LAYERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_computes_as_one_with_the_rounded_weight(build, dtype):
    for found, expected in zip(*(results(each, dtype) for each in pair(build, dtype)), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected)


def test_the_gradient_is_that_of_finite_differences():
    held, _ = pair(LAYERS[3], torch.float64)
    inputs = torch.randn(1, 6, 7, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(held, inputs)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_weights_are_rounded_by_less_than_one_percent(size):
    values = torch.randn(64, 512) * size * torch.logspace(-2, 2, 64)[:, None]
    layer = nn.Linear(512, 64)
    eight_bit.hold(layer, values.clone(), torch.float32)
    errors = (eight_bit.values(layer) - values).std(dim=1) / values.std(dim=1)
    assert 0.004 < errors.max() < 0.01
    assert layer.weight.dtype == torch.int8
    assert layer.weight.nbytes == values.numel()


def test_a_channel_of_zeros_stays_zero():
    layer = nn.Conv2d(3, 2, 3)
    values = torch.randn(2, 3, 3, 3)
    values[1] = 0
    eight_bit.hold(layer, values.clone(), torch.float16)
    assert not eight_bit.values(layer)[1].any()
    assert eight_bit.values(layer).isfinite().all()


def test_under_autocast_a_layer_computes_in_its_own_format():
    held, plain = pair(LAYERS[0], torch.bfloat16)
    inputs = torch.randn(3, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = held(inputs), plain(inputs)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


@pytest.mark.parametrize("build", LAYERS[::2])
def test_between_the_passes_no_restored_weight_is_kept(build):
    held, _ = pair(build)
    shape = next(shape for kind, shape in INPUTS.items() if isinstance(held, kind))
    inputs = torch.randn(shape, requires_grad=True)
    with StorageCounter((*held.parameters(), *held.buffers())) as counter:
        output = held(inputs)
        kept = counter.bytes[COPIES]
        output.sum().backward()
    assert kept == 0
    assert max(moment[COPIES] for moment in counter.moments) >= 4 * held.weight.numel()


@pytest.mark.parametrize("is_held", [True, False])
def test_rows_are_summed_and_have_the_right_gradient(is_held):
    held, plain = pair(LAYERS[2])
    vectors = torch.randn(4, 10, requires_grad=True)
    found = eight_bit.rows(vectors, held if is_held else plain)
    expected = torch.einsum("ro,oihw->rihw", vectors, plain.weight).flatten(1)
    torch.testing.assert_close(found, expected)
    (ours,) = torch.autograd.grad(found.square().sum(), vectors, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.square().sum(), vectors)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("build", LAYERS[:4:2])
def test_an_adapter_with_dora_has_the_same_gradients(build):
    held, plain = pair(build)
    found = []
    for layer in (held, plain):
        adapter = Adapter(layer, 4, 0.5, dora=True)
        adapter.reset(torch.Generator().manual_seed(0))
        nn.init.normal_(adapter.up, generator=torch.Generator().manual_seed(1))
        attach(layer, adapter)
        shape = next(shape for kind, shape in INPUTS.items() if isinstance(layer, kind))
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        inputs.requires_grad_(True)
        output = layer(inputs)
        wanted = [inputs, *adapter.parameters()]
        found.append([output, *torch.autograd.grad(output.square().sum(), wanted)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_layer_can_hold_other_values_later():
    held, _ = pair(LAYERS[0])
    eight_bit.hold(held, torch.full((40, 24), 3.0), torch.float32)
    assert eight_bit.values(held) == pytest.approx(torch.full((40, 24), 3.0), rel=0.005)


def test_hooks_copies_and_moves_survive():
    layer = nn.Linear(24, 40)
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    eight_bit.hold(layer, layer.weight.detach().clone(), torch.float32)
    inputs = torch.randn(2, 24)
    weight = eight_bit.values(layer)
    expected = F.linear(inputs, weight, layer.bias) + 1
    for each in (layer, copy.deepcopy(layer), layer.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(each(inputs), expected)
    assert layer.to("meta").scale.is_meta


def test_only_linear_layers_and_convolutions_are_named():
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Embedding(2, 2), nn.Conv2d(2, 2, 1))
    assert list(eight_bit.layers(module)) == ["0.weight", "3.weight"]
